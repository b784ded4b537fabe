use super::*;

fn image() -> ImageConfig {
    serde_json::from_value(json!({
        "User": "", "Env": ["PATH=/bin", "A=1"], "Entrypoint": ["/run.sh"], "Cmd": ["x"], "WorkingDir": "/srv",
        "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGQUIT", "Labels": {"l": "image"}
    }))
    .unwrap()
}

fn rootfs() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("etc")).unwrap();
    // An absolute link must lead inside the image, not to the host's file.
    std::os::unix::fs::symlink("/etc/real", dir.path().join("etc/passwd")).unwrap();
    std::fs::write(dir.path().join("etc/real"), "root:x:0:0::/root:\napp:x:7:8::/home/app:\n").unwrap();
    dir
}

fn make(overrides: Overrides) -> Result<Value> {
    config(&image(), rootfs().path(), &overrides)
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect()
}

#[test]
fn command_and_entry_point_follow_docker() {
    for (entrypoint, command, expected) in [
        (None, None, "/run.sh x"),
        (None, Some("y z"), "/run.sh y z"),
        (Some("/bin/sh -c"), None, "/bin/sh -c"),
        (Some("/bin/sh"), Some("-c ls"), "/bin/sh -c ls"),
        (Some(""), Some("ls"), "ls"),
        (Some(""), None, "command ``: neither the image nor you give one"),
    ] {
        let overrides =
            Overrides { entrypoint: entrypoint.map(words), command: command.map(words), ..Overrides::default() };
        let got = match make(overrides) {
            Ok(config) => strings(&config["process"]["args"]).join(" "),
            Err(error) => error.to_string(),
        };
        assert_eq!(got, expected, "{entrypoint:?} {command:?}");
    }
}

#[test]
fn environment_is_merged_by_key() {
    let overrides =
        Overrides { env: words("A=2 B=3 C"), hostname: Some("h".into()), tty: true, ..Overrides::default() };
    let config = make(overrides).unwrap();
    assert_eq!(
        strings(&config["process"]["env"]),
        ["PATH=/bin", "HOSTNAME=h", "TERM=xterm", "A=2", "B=3", "HOME=/root"]
    );
    let removed = make(Overrides { env: words("A HOME=/x"), ..Overrides::default() }).unwrap();
    assert_eq!(strings(&removed["process"]["env"]), ["PATH=/bin", "HOME=/x"]);
    assert!(make(Overrides { env: vec!["=x".into()], ..Overrides::default() }).is_err());
}

#[test]
fn the_defaults_are_those_of_docker() {
    let config = make(Overrides::default()).unwrap();
    let text = serde_json::to_string_pretty(&config["process"]["capabilities"]["bounding"]).unwrap();
    assert_eq!(config["process"]["capabilities"]["bounding"].as_array().unwrap().len(), 14, "{text}");
    assert_eq!(config["process"]["cwd"], "/srv");
    assert_eq!(config["process"]["rlimits"], json!([]));
    assert_eq!(config["process"]["user"], json!({"uid": 0, "gid": 0, "additionalGids": [0]}));
    let kinds: Vec<&str> =
        config["linux"]["namespaces"].as_array().unwrap().iter().map(|n| n["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["pid", "ipc", "uts", "mount", "cgroup", "network"]);
    let places: Vec<&str> =
        config["mounts"].as_array().unwrap().iter().map(|m| m["destination"].as_str().unwrap()).collect();
    assert_eq!(places, ["/proc", "/dev", "/sys", "/dev/pts", "/dev/mqueue", "/dev/shm", "/sys/fs/cgroup"]);
    assert_eq!(config["linux"]["resources"]["devices"][0], json!({"allow": false, "access": "rwm"}));
    assert!(config["linux"]["resources"].get("memory").is_none());
    assert!(strings(&config["linux"]["maskedPaths"]).contains(&"/proc/kcore"));
    assert_eq!(config["annotations"]["org.opencontainers.image.stopSignal"], "SIGQUIT");
    assert_eq!(config["annotations"]["l"], "image");
}

#[test]
fn a_user_of_the_image_has_no_capabilities_of_its_own() {
    let config = make(Overrides { user: Some("app".into()), ..Overrides::default() }).unwrap();
    assert_eq!(config["process"]["user"], json!({"uid": 7, "gid": 8, "additionalGids": [8]}));
    assert_eq!(config["process"]["capabilities"]["effective"], json!([]));
    assert_eq!(config["process"]["capabilities"]["bounding"].as_array().unwrap().len(), 14);
    let error = make(Overrides { user: Some("nobody".into()), ..Overrides::default() }).unwrap_err();
    assert_eq!(error.to_string(), "no user `nobody` in /etc/passwd of the image");
    assert!(error.hint().is_some());
}

#[test]
fn capabilities_are_added_and_dropped() {
    for (add, drop, expected) in [
        ("", "ALL", ""),
        ("net_admin", "all", "CAP_NET_ADMIN"),
        (
            "",
            "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP CAP_KILL",
            "CAP_AUDIT_WRITE CAP_NET_BIND_SERVICE CAP_SYS_CHROOT",
        ),
        ("flying", "", "cap_add `flying`: is not a capability of Linux"),
    ] {
        let got = match make(Overrides { cap_add: words(add), cap_drop: words(drop), ..Overrides::default() }) {
            Ok(config) => strings(&config["process"]["capabilities"]["bounding"]).join(" "),
            Err(error) => error.to_string(),
        };
        assert_eq!(got, expected, "+{add} -{drop}");
    }
    let all = make(Overrides { cap_add: words("ALL"), cap_drop: words("CAP_CHOWN"), ..Overrides::default() }).unwrap();
    let all = strings(&all["process"]["capabilities"]["bounding"]).join(" ");
    assert!(all.contains("CAP_SYS_ADMIN") && !all.contains("CAP_CHOWN"), "{all}");
}

#[test]
fn resources_become_what_the_kernel_takes() {
    let overrides = Overrides {
        memory_bytes: Some(64 << 20),
        memory_swap: Some(-1),
        cpu_millis: Some(1500),
        pids_max: Some(100),
        ..Overrides::default()
    };
    let resources = make(overrides).unwrap()["linux"]["resources"].clone();
    assert_eq!(resources["memory"], json!({"limit": 64 << 20, "swap": -1}));
    assert_eq!(resources["cpu"], json!({"shares": 1536, "quota": 150_000, "period": 100_000}));
    assert_eq!(resources["pids"], json!({"limit": 100}));
    let tiny = make(Overrides { cpu_millis: Some(1), ..Overrides::default() }).unwrap();
    assert_eq!(tiny["linux"]["resources"]["cpu"], json!({"shares": 2, "quota": 1000, "period": 100_000}));
    for (overrides, why) in [
        (Overrides { memory_bytes: Some(2), memory_swap: Some(1), ..Overrides::default() }, "at least"),
        (Overrides { memory_swap: Some(1), ..Overrides::default() }, "needs a limit"),
        (Overrides { cpu_millis: Some(0), ..Overrides::default() }, "more than nothing"),
        (Overrides { memory_bytes: Some(u64::MAX), ..Overrides::default() }, "too large"),
        (Overrides { oom_score_adj: Some(2000), ..Overrides::default() }, "between"),
    ] {
        let error = make(overrides).unwrap_err().to_string();
        assert!(error.contains(why), "{why}: {error}");
    }
}

fn mount(source: &str, target: &str, kind: MountKind, read_only: bool, options: &str) -> Mount {
    Mount { source: source.into(), target: target.into(), kind, read_only, options: words(options) }
}

#[test]
fn mounts_replace_defaults_and_are_in_order() {
    let overrides = Overrides {
        mounts: vec![
            mount("/v/data", "/srv/a/b/", MountKind::Volume, false, ""),
            mount("/etc/hosts", "/etc/hosts", MountKind::Bind, true, "rslave"),
            mount("", "/srv/a", MountKind::Tmpfs, false, "size=1m"),
            mount("/dev/shm", "/dev/shm", MountKind::Bind, false, ""),
        ],
        ..Overrides::default()
    };
    let config = make(overrides).unwrap();
    let shown: Vec<String> = config["mounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| {
            format!(
                "{} {} {}",
                m["destination"].as_str().unwrap(),
                m["source"].as_str().unwrap(),
                strings(&m["options"]).join(",")
            )
        })
        .filter(|line| !line.starts_with("/proc") && !line.starts_with("/sys"))
        .collect();
    assert_eq!(
        shown,
        [
            "/dev tmpfs nosuid,strictatime,mode=755,size=65536k",
            "/dev/pts devpts nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5",
            "/dev/mqueue mqueue nosuid,noexec,nodev",
            "/etc/hosts /etc/hosts rbind,rslave,ro",
            "/srv/a tmpfs nosuid,nodev,noexec,size=1m,rw",
            "/dev/shm /dev/shm rbind,rprivate,rw",
            "/srv/a/b /v/data rbind,rprivate,rw",
        ]
    );
    for (bad, why) in [
        (mount("x", "/a", MountKind::Bind, false, ""), "absolute"),
        (mount("/x", "a", MountKind::Bind, false, ""), "absolute"),
        (mount("/x", "/a/../..", MountKind::Bind, false, ""), "`..`"),
        (mount("/x", "/", MountKind::Bind, false, ""), "root"),
    ] {
        let error = make(Overrides { mounts: vec![bad], ..Overrides::default() }).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn networks_decide_namespaces_and_parameters() {
    let host = make(Overrides { network: Network::Host, ..Overrides::default() }).unwrap();
    assert!(!host["linux"]["namespaces"].to_string().contains("network"));
    assert!(host["linux"].get("sysctl").is_none());
    let path = make(Overrides { network: Network::Path("/run/netns/a".into()), ..Overrides::default() }).unwrap();
    assert_eq!(path["linux"]["namespaces"][5], json!({"type": "network", "path": "/run/netns/a"}));
    assert_eq!(path["linux"]["sysctl"]["net.ipv4.ip_unprivileged_port_start"], "0");
    for (key, network, good) in [
        ("net.core.somaxconn", Network::New, true),
        ("net.core.somaxconn", Network::Host, false),
        ("kernel.shmmax", Network::Host, true),
        ("kernel.panic", Network::New, false),
        ("net/../../kernel.panic", Network::New, false),
    ] {
        let sysctls = BTreeMap::from([(key.to_owned(), "1".to_owned())]);
        assert_eq!(make(Overrides { sysctls, network, ..Overrides::default() }).is_ok(), good, "{key}");
    }
}

#[test]
fn a_privileged_container_sees_everything() {
    let config = make(Overrides { privileged: true, ..Overrides::default() }).unwrap();
    for absent in ["seccomp", "maskedPaths", "readonlyPaths"] {
        assert!(config["linux"].get(absent).is_none(), "{absent}");
    }
    assert_eq!(config["linux"]["resources"]["devices"], json!([{"allow": true, "access": "rwm"}]));
    assert!(config["linux"]["devices"].as_array().unwrap().iter().any(|d| d["path"] == "/dev/null"));
    let sys = config["mounts"].as_array().unwrap().iter().find(|m| m["destination"] == "/sys").unwrap();
    assert!(strings(&sys["options"]).contains(&"rw"));
}

#[test]
fn devices_of_the_host_get_a_node_and_a_rule() {
    let device = |host: &str, permissions: &str| Device {
        host: host.into(),
        container: "/dev/x".into(),
        permissions: permissions.into(),
    };
    let config = make(Overrides { devices: vec![device("/dev/null", "rw")], ..Overrides::default() }).unwrap();
    let node = &config["linux"]["devices"][0];
    assert_eq!(
        (node["path"].as_str(), node["major"].as_u64(), node["minor"].as_u64()),
        (Some("/dev/x"), Some(1), Some(3))
    );
    let rule = config["linux"]["resources"]["devices"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(rule, json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"}));
    for (bad, why) in [
        (device("/etc/passwd", ""), "not a device"),
        (device("/dev/null", "x"), "permissions"),
        (device("/dev/absent", ""), "look at"),
    ] {
        let error = make(Overrides { devices: vec![bad], ..Overrides::default() }).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

fn allowed(config: &Value) -> std::collections::BTreeSet<String> {
    let rules = config["linux"]["seccomp"]["syscalls"].as_array().unwrap();
    let plain = rules.iter().filter(|rule| rule["action"] == "SCMP_ACT_ALLOW" && rule.get("args").is_none());
    plain.flat_map(|rule| strings(&rule["names"]).into_iter().map(str::to_owned).collect::<Vec<_>>()).collect()
}

#[test]
fn the_default_filter_allows_the_ordinary_and_what_capabilities_are_for() {
    let plain = make(Overrides::default()).unwrap();
    assert_eq!(plain["linux"]["seccomp"]["defaultErrnoRet"], 1);
    let calls = allowed(&plain);
    for call in ["read", "execve", "futex_waitv", "chroot", "ptrace", "openat2", "epoll_pwait2"] {
        assert!(calls.contains(call), "{call}");
    }
    for call in [
        "mount",
        "keyctl",
        "add_key",
        "io_uring_setup",
        "userfaultfd",
        "bpf",
        "unshare",
        "clone",
        "clone3",
        "reboot",
        "kexec_load",
        "open_by_handle_at",
        "socket",
        "personality",
    ] {
        assert!(!calls.contains(call), "{call}");
    }
    let text = plain["linux"]["seccomp"]["syscalls"].to_string();
    assert!(text.contains(r#"{"names":["clone3"],"action":"SCMP_ACT_ERRNO","errnoRet":38}"#), "{text}");
    assert!(text.contains(r#"{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}"#), "{text}");
    let admin = allowed(&make(Overrides { cap_add: words("SYS_ADMIN"), ..Overrides::default() }).unwrap());
    assert!(admin.contains("mount") && admin.contains("clone3"));
    let free = make(Overrides { security: Seccomp::Unconfined, ..Overrides::default() }).unwrap();
    assert!(free["linux"].get("seccomp").is_none());
}

#[test]
fn a_filter_of_the_users_own_is_taken_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.json");
    let with = || make(Overrides { security: Seccomp::Path(path.clone()), ..Overrides::default() });
    assert!(with().unwrap_err().to_string().contains("cannot read"));
    for (text, good) in [
        (r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#, true),
        (r#"{"defaultAction":"SCMP_ACT_ERRNO","archMap":[]}"#, false),
        ("{}", false),
        ("x", false),
    ] {
        std::fs::write(&path, text).unwrap();
        assert_eq!(with().is_ok(), good, "{text}");
    }
}

#[test]
fn an_init_is_mounted_and_run_first() {
    let config = make(Overrides { init: Some("/usr/bin/tini".into()), ..Overrides::default() }).unwrap();
    assert_eq!(strings(&config["process"]["args"]), ["/dev/init", "--", "/run.sh", "x"]);
    assert!(config["mounts"].to_string().contains(r#""source":"/usr/bin/tini""#));
}

#[test]
fn limits_are_only_those_asked_for() {
    let limit = |name: &str, soft, hard| Ulimit { name: name.into(), soft, hard };
    let config = make(Overrides { ulimits: vec![limit("nofile", 10, 20)], ..Overrides::default() }).unwrap();
    assert_eq!(config["process"]["rlimits"], json!([{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}]));
    for bad in [limit("wings", 1, 2), limit("nofile", 3, 2)] {
        assert!(make(Overrides { ulimits: vec![bad], ..Overrides::default() }).is_err());
    }
}

#[test]
fn a_bundle_is_written_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("a/b");
    let config = make(Overrides::default()).unwrap();
    write(&bundle, &config).unwrap();
    write(&bundle, &config).unwrap();
    let path = bundle.join("config.json");
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(serde_json::from_slice::<Value>(&std::fs::read(path).unwrap()).unwrap(), config);
}
