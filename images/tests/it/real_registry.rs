//! Pulls from the reference implementation of a registry, if it is installed (Debian: docker-registry, skopeo).

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gantry_images::{NoProgress, PullOptions, SnapshotOptions, Store};

use crate::common::{Built, Layer, Tar, noise, workplace};

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Already gone is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn installed(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok()
}

#[test]
fn what_another_tool_pushed_is_pulled() {
    if !installed("docker-registry") || !installed("skopeo") {
        println!("skipped: docker-registry and skopeo are not installed");
        return;
    }
    let work = workplace("128m");
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let config = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: /mnt/registry}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n"
    );
    fs::write(work.join("registry.yml"), config).unwrap();
    let mut command = Command::new("docker-registry");
    command
        .args(["serve", "/mnt/registry.yml"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // Its own group, so that a signal to the test's does not race with the kill below.
    let _registry = Running(command.process_group(0).spawn().unwrap());
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(
            Instant::now() < deadline,
            "docker-registry does not listen on {port}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let built = Built::new(&[
        noise(1, 3, 300_000),
        Layer::gzip(Tar::new().dir("etc", 0o755).file("etc/motd", "hello")),
    ]);
    built.write_layout(&work.join("layout"), "latest");
    let push = Command::new("skopeo")
        .args([
            "copy",
            "--insecure-policy",
            "--dest-tls-verify=false",
            "oci:/mnt/layout:latest",
        ])
        .arg(format!("docker://127.0.0.1:{port}/shop/web:1"))
        .output()
        .unwrap();
    assert!(
        push.status.success(),
        "{}",
        String::from_utf8_lossy(&push.stderr)
    );
    let store = Store::open(work.join("store")).unwrap();
    let reference = format!("127.0.0.1:{port}/shop/web:1").parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let image = runtime
        .block_on(store.pull(&reference, &PullOptions::default(), &NoProgress))
        .unwrap();
    assert_eq!((image.digest, image.id), (built.digest(), built.id()));
    let rootfs = store
        .snapshot(&image, "c", &SnapshotOptions { volatile: true })
        .unwrap()
        .rootfs;
    assert_eq!(
        fs::read_to_string(rootfs.join("etc/motd")).unwrap(),
        "hello"
    );
    let missing = format!("127.0.0.1:{port}/shop/web:2").parse().unwrap();
    let error = runtime
        .block_on(store.pull(&missing, &PullOptions::default(), &NoProgress))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("`shop/web:2` is not in registry 127.0.0.1:{port}")
    );
}
