//! Files below `/dev`, devices elsewhere, and terminals.

mod common;

use common::{Bed, finish, id};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

#[test]
fn default_devices_and_links() {
    let mut bed = Bed::new(
        "for d in null zero full random urandom tty; do stat -c '%n %F %t:%T %a %u:%g' /dev/$d; done;
         for l in fd stdin stdout stderr ptmx; do echo $l $(readlink /dev/$l); done; ls /dev | tr '\\n' ' '",
    );
    bed.config["mounts"].as_array_mut().expect("mounts").retain(|mount| mount["destination"] != "/dev/mqueue");
    let device = |name: &str, numbers: &str| format!("/dev/{name} character special file {numbers} 666 0:0\n");
    let want =
        [("null", "1:3"), ("zero", "1:5"), ("full", "1:7"), ("random", "1:8"), ("urandom", "1:9"), ("tty", "5:0")];
    let want: String = want.iter().map(|(name, numbers)| device(name, numbers)).collect();
    let links =
        "fd /proc/self/fd\nstdin /proc/self/fd/0\nstdout /proc/self/fd/1\nstderr /proc/self/fd/2\nptmx pts/ptmx\n";
    let all = "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero ";
    assert_eq!(bed.says(), want + links + all);
}

#[test]
fn listed_devices_of_every_type() {
    let mut bed = Bed::new("stat -c '%n %F %t:%T %a %u:%g' /dev/c /dev/b /dev/u /dev/p /made/for/it /dev/plain");
    bed.config["root"]["readonly"] = json!(false);
    bed.config["linux"]["devices"] = json!([
        {"type": "c", "path": "/dev/c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 5, "gid": 6},
        // As some engines write it, with the bits of the type.
        {"type": "b", "path": "/dev/b", "major": 7, "minor": 3, "fileMode": 0o060_600},
        {"type": "u", "path": "/dev/u", "major": 1, "minor": 5, "fileMode": 0o777},
        {"type": "p", "path": "/dev/p", "fileMode": 0o622, "gid": 9},
        {"type": "c", "path": "/made/for/it", "major": 1, "minor": 3},
        {"type": "c", "path": "/dev/plain", "major": 1, "minor": 3, "uid": 1},
        // One of the default ones once more.
        {"type": "c", "path": "/dev/null", "major": 1, "minor": 3},
    ]);
    assert_eq!(
        bed.says(),
        "/dev/c character special file a:e5 640 5:6\n/dev/b block special file 7:3 600 0:0\n\
         /dev/u character special file 1:5 777 0:0\n/dev/p fifo 0:0 622 0:9\n\
         /made/for/it character special file 1:3 666 0:0\n/dev/plain character special file 1:3 666 1:0\n"
    );
}

#[test]
fn what_is_in_the_place_of_a_device_must_be_that_device() {
    for (devices, want) in [
        (json!([{"type": "c", "path": "/etc/passwd", "major": 1, "minor": 3}]), "`passwd` exists and is another file"),
        (json!([{"type": "c", "path": "/dev/null", "major": 1, "minor": 5}]), "`null` exists and is another file"),
        (
            json!([{"type": "x", "path": "/dev/x", "major": 1, "minor": 5}]),
            "$.linux.devices[0].type: `x` is not one of c",
        ),
        (json!([{"type": "c", "path": "dev/x", "major": 1, "minor": 5}]), "$.linux.devices[0].path: `dev/x` is not"),
        (json!([{"type": "c", "path": "/dev/x", "minor": 5}]), "$.linux.devices[0]: needs `major` and `minor`"),
    ] {
        let mut bed = Bed::new("echo started");
        bed.config["root"]["readonly"] = json!(false);
        fs::write(bed.rootfs("etc/passwd"), "").expect("a file");
        bed.config["linux"]["devices"] = devices.clone();
        let message = bed.refuses();
        assert!(message.contains(want), "{devices}: {message}");
    }
}

#[test]
fn a_bound_dev_is_left_as_it_is() {
    let mut bed = Bed::new("ls /dev; echo x > /dev/null && echo writable; stat -c %t:%T /extra");
    bed.config["root"]["readonly"] = json!(false);
    bed.config["linux"]["devices"] = json!([
        {"type": "c", "path": "/dev/extra", "major": 1, "minor": 5},
        {"type": "c", "path": "/extra", "major": 1, "minor": 5},
    ]);
    let host = bed.path("dev");
    fs::create_dir(&host).expect("a directory");
    let made = Command::new("mknod").arg(host.join("null")).args(["c", "1", "3"]).status().expect("mknod");
    assert!(made.success());
    let mounts = bed.config["mounts"].as_array_mut().expect("mounts");
    mounts.retain(|mount| !mount["destination"].as_str().expect("a path").starts_with("/dev"));
    mounts.push(json!({"destination": "/dev", "source": host, "options": ["rbind"]}));
    assert_eq!(bed.says(), "null\nwritable\n1:5\n");
    assert!(!host.join("extra").exists());
}

#[test]
fn a_user_namespace_gets_devices_pipes_and_links_as_well() {
    let mut bed = Bed::new("stat -c '%n %F %t:%T' /dev/null /dev/extra /dev/pipe; echo x > /dev/null && echo writable");
    let own = Command::new("chown").args(["-R", "100000:100000"]).arg(bed.rootfs("")).status().expect("chown");
    assert!(own.success());
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    bed.config["linux"]["uidMappings"] = map.clone();
    bed.config["linux"]["gidMappings"] = map;
    bed.config["linux"]["namespaces"].as_array_mut().expect("namespaces").push(json!({"type": "user"}));
    bed.config["linux"]["devices"] = json!([
        {"type": "c", "path": "/dev/full", "major": 1, "minor": 7},
        {"type": "p", "path": "/dev/pipe", "fileMode": 0o600},
    ]);
    bed.config["process"]["args"][2] =
        json!("stat -c '%n %F %t:%T' /dev/null /dev/full /dev/pipe; echo x > /dev/null && echo writable");
    assert_eq!(
        bed.says(),
        "/dev/null character special file 1:3\n/dev/full character special file 1:7\n/dev/pipe fifo 0:0\nwritable\n"
    );
}

/// Run in a terminal of util-linux's `script`, which is a client as a person's shell would be.
fn in_a_terminal(bed: &Bed) -> String {
    bed.save();
    let command = format!(
        "{} --root {} run {}",
        env!("CARGO_BIN_EXE_gantry-runtime"),
        bed.path("state").display(),
        id("terminal")
    );
    let mut script = Command::new("script");
    script.args(["-q", "-e", "-c", &command, "/dev/null"]).current_dir(bed.bundle());
    let ran = finish(&mut script);
    assert_eq!(ran.code, 0, "{ran:?}");
    // Its own input is empty, which it types as the end of input.
    ran.out.replace(['\r', '\u{8}'], "").replace("^@", "").replace("^D", "")
}

#[test]
fn a_terminal_is_the_console_and_controls_the_session() {
    let mut bed = Bed::new(
        "tty; stat -c '%n %F %t' /dev/console; test /dev/console -ef /dev/pts/0 || echo another file;
         grep -c ' /dev/console ' /proc/self/mountinfo; echo to-console > /dev/console; echo to-tty > /dev/tty;
         stat -c '%u %a' /dev/pts/0; ls /dev/pts | tr '\\n' ' '; readlink /proc/self/fd/1",
    );
    bed.config["process"]["terminal"] = json!(true);
    bed.config["process"]["user"] = json!({"uid": 0, "gid": 0});
    let out = in_a_terminal(&bed);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], "/dev/pts/0", "{out}");
    assert!(lines[1].starts_with("/dev/console character special file 88"), "{out}");
    assert!(!out.contains("another file"), "{out}");
    assert_eq!(&lines[2..5], ["1", "to-console", "to-tty"], "{out}");
    assert_eq!(&lines[5..], ["0 620", "0 ptmx /dev/pts/0"], "{out}");
}

#[test]
fn a_terminal_belongs_to_its_user() {
    let mut bed = Bed::new("stat -c %u /dev/pts/0; echo x > /dev/tty");
    bed.config["process"]["terminal"] = json!(true);
    bed.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    assert_eq!(in_a_terminal(&bed), "1000\nx\n");
}

#[test]
fn the_console_has_the_size_it_is_given() {
    // Supervised, so that no terminal of a person gives it another size.
    let mut bed = Bed::new("stty size");
    bed.config["process"]["terminal"] = json!(true);
    bed.config["process"]["consoleSize"] = json!({"height": 33, "width": 111});
    let name = id("size");
    let supervised = bed.supervised();
    let args: Vec<&str> =
        ["run", "-d"].into_iter().chain(supervised.iter().map(String::as_str)).chain([&*name]).collect();
    bed.ok(&args);
    bed.exit_record();
    assert_eq!(bed.logged().trim(), "33 111");
    bed.ok(&["delete", "--force", &name]);
    // Without a terminal it means nothing.
    let mut bed = Bed::new("echo fine");
    bed.config["process"]["consoleSize"] = json!({"height": 1, "width": 1});
    assert_eq!(bed.says(), "fine\n");
}

#[test]
fn links_of_the_image_do_not_lead_device_files_astray() {
    let outside = tempfile::tempdir().expect("a directory");
    let mut bed = Bed::new("echo started");
    bed.config["root"]["readonly"] = json!(false);
    symlink(outside.path(), bed.rootfs("places")).expect("a link");
    let device: Value = json!({"type": "c", "path": "/places/null", "major": 1, "minor": 3});
    bed.config["linux"]["devices"] = json!([device]);
    bed.run(&["run", &id("astray")]);
    assert_eq!(fs::read_dir(outside.path()).expect("outside").count(), 0);
}
