//! Pulls from the reference implementation of a registry, if it is installed (Debian: docker-registry, skopeo).

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gantry_images::{ImageError, LoadSource, NoProgress, PullOptions, Reference, SnapshotOptions, Store};

use crate::common::{Built, Events, Layer, Tar, noise, workplace};
use crate::concurrent::{child, finish};

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Already gone is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn installed(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// The registry program, listening on loopback with its data under `/mnt`.
fn start(port: u16, tls: &str) -> Running {
    let config = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: /mnt/registry}}}}\nhttp: {{addr: '127.0.0.1:{port}'{tls}}}\n"
    );
    fs::write("/mnt/registry.yml", config).unwrap();
    let mut command = Command::new("docker-registry");
    command.args(["serve", "/mnt/registry.yml"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let registry = Running(command.spawn().unwrap());
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "docker-registry does not listen on {port}");
        std::thread::sleep(Duration::from_millis(20));
    }
    registry
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn push(layout: &str, target: &str) {
    let push = Command::new("skopeo")
        .args(["copy", "--insecure-policy", "--dest-tls-verify=false", layout, target])
        .output()
        .unwrap();
    assert!(push.status.success(), "{}", String::from_utf8_lossy(&push.stderr));
}

fn ready() -> bool {
    let ready = installed("docker-registry") && installed("skopeo");
    if !ready {
        println!("skipped: docker-registry and skopeo are not installed");
    }
    ready
}

#[test]
fn what_another_tool_pushed_is_pulled() {
    if !ready() {
        return;
    }
    let work = workplace("128m");
    let port = free_port();
    let _registry = start(port, "");
    let built =
        Built::new(&[noise(1, 3, 300_000), Layer::gzip(Tar::new().dir("etc", 0o755).file("etc/motd", "hello"))]);
    built.write_layout(&work.join("layout"), "latest");
    push("oci:/mnt/layout:latest", &format!("docker://127.0.0.1:{port}/shop/web:1"));
    let store = Store::open(work.join("store")).unwrap();
    let reference = format!("127.0.0.1:{port}/shop/web:1").parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let image = runtime.block_on(store.pull(&reference, &PullOptions::default(), &NoProgress)).unwrap();
    assert_eq!((image.digest, image.id), (built.digest(), built.id()));
    let options = SnapshotOptions { volatile: true, ..SnapshotOptions::default() };
    let rootfs = store.snapshot(&image, "c", &options).unwrap().rootfs;
    assert_eq!(fs::read_to_string(rootfs.join("etc/motd")).unwrap(), "hello");
    let missing = format!("127.0.0.1:{port}/shop/web:2").parse().unwrap();
    let error = runtime.block_on(store.pull(&missing, &PullOptions::default(), &NoProgress)).unwrap_err();
    assert_eq!(error.to_string(), format!("`shop/web:2` is not in registry 127.0.0.1:{port}"));
}

#[test]
fn what_is_pushed_and_saved_other_tools_read() {
    if !ready() {
        return;
    }
    let work = workplace("256m");
    let port = free_port();
    let _registry = start(port, "");
    // More than one piece.
    let built = Built::new(&[noise(1, 3, 6 << 20), Layer::zstd(Tar::new().file("etc/motd", "hello"))]);
    built.write_layout(&work.join("layout"), "app:1");
    let store = Store::open(work.join("store")).unwrap();
    store.load(LoadSource::Path(work.join("layout")), &NoProgress).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let push = |target: &str| {
        let events = Events::default();
        let target: Reference = format!("127.0.0.1:{port}/{target}").parse().unwrap();
        let digest = runtime.block_on(store.push("app:1", &target, &PullOptions::default(), &events)).unwrap();
        assert_eq!(digest, built.digest());
        store.tag("app:1", &target).unwrap();
        events.reused()
    };
    assert_eq!(push("shop/web:1"), [false; 3]);
    assert_eq!(push("shop/web:2"), [true; 3], "there already");
    assert_eq!(push("shop/other:1"), [true; 3], "taken from the first repository");
    let skopeo = |args: &[&str]| {
        let output = Command::new("skopeo").args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    for name in ["shop/web:1", "shop/web:2", "shop/other:1"] {
        let image = format!("docker://127.0.0.1:{port}/{name}");
        assert_eq!(skopeo(&["inspect", "--tls-verify=false", "--raw", &image]), built.manifest);
    }
    let mut archive = fs::File::create(work.join("app.tar")).unwrap();
    store.save(&["app:1"], &mut archive, "app.tar").unwrap();
    assert_eq!(skopeo(&["inspect", "--raw", "oci-archive:/mnt/app.tar"]), built.manifest);
    skopeo(&["copy", "--insecure-policy", "docker-archive:/mnt/app.tar:app:1", "dir:/mnt/dir"]);
    let config = fs::read(work.join("dir").join(built.id().hex())).unwrap();
    assert_eq!(config, built.config, "as docker reads it");
}

/// HTTPS, with a certificate that the environment trusts, at a name from `/etc/hosts`.
#[test]
fn a_registry_behind_tls_is_found_and_its_certificate_checked() {
    if !ready() {
        return;
    }
    let work = workplace("64m");
    let port = free_port();
    let made = rcgen::generate_simple_self_signed(["registry.test".to_owned()]).unwrap();
    fs::write(work.join("cert.pem"), made.cert.pem()).unwrap();
    fs::write(work.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    fs::write(work.join("hosts"), "127.0.0.1 registry.test\n").unwrap();
    let none = None::<&str>;
    // Only in the mount namespace of this test.
    nix::mount::mount(Some("/mnt/hosts"), "/etc/hosts", none, nix::mount::MsFlags::MS_BIND, none).unwrap();
    let _registry = start(port, ", tls: {certificate: /mnt/cert.pem, key: /mnt/key.pem}");
    Built::new(&[noise(1, 1, 1000)]).write_layout(&work.join("layout"), "latest");
    push("oci:/mnt/layout:latest", &format!("docker://registry.test:{port}/web:1"));
    let reference = format!("registry.test:{port}/web:1");
    let mut trusting = child(&format!("pull /mnt/store {reference}"));
    finish(trusting.env("SSL_CERT_FILE", "/mnt/cert.pem").spawn().unwrap());
    let store = Store::open(work.join("store")).unwrap();
    assert!(store.image(&reference).unwrap().is_some());
    let other = Store::open(work.join("other")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let pull = |insecure: &[String]| {
        let options = PullOptions { insecure_registries: insecure.to_vec(), ..PullOptions::default() };
        runtime.block_on(other.pull(&reference.parse().unwrap(), &options, &NoProgress)).unwrap_err()
    };
    let error = pull(&[]);
    assert!(matches!(error, ImageError::Network { .. }), "a stranger's certificate: {error:?}");
    // Said to be insecure it gets plain HTTP, which this one refuses.
    let error = pull(&[format!("registry.test:{port}")]);
    assert!(matches!(error, ImageError::Registry { status: 400, .. }), "{error:?}");
}
