use super::*;
use std::collections::HashMap;

struct Files(HashMap<&'static str, &'static str>);

impl Host for Files {
    fn read(&self, path: &Path) -> io::Result<String> {
        let found = path.to_str().and_then(|path| self.0.get(path));
        found.map(|text| (*text).to_owned()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn var(&self, name: &str) -> Option<String> {
        self.0.get(format!("${name}").as_str()).map(|text| (*text).to_owned())
    }
}

fn read(files: &[(&'static str, &'static str)]) -> Result<Loaded, String> {
    let named = files.iter().map(|(name, _)| *name).filter(|name| name.ends_with(".yaml"));
    let request = Request { files: named.map(PathBuf::from).collect(), ..Request::default() };
    load(&request, &Files(files.iter().copied().collect())).map_err(|problems| problems.to_string())
}

const SHOP: &str = r#"
services:
  web:
    image: shop-web:1
    ports: ["8080:80", "5353:53/udp"]
    depends_on:
      api: {condition: service_healthy}
    deploy:
      replicas: 2
      update_config: {order: start-first, parallelism: 2}
      placement: {constraints: ["node.labels.disk == ssd", node.hostname != n3]}
  api:
    image: shop-api:${TAG:-1}
    command: serve --name "the shop"
    environment: {DB: db, DEBUG: ~}
    healthcheck: {test: curl -f localhost, interval: 2s, retries: 5}
    deploy:
      resources:
        limits: {cpus: "0.5", memory: 128M, pids: 50}
        reservations: {memory: 64M}
  db:
    image: shop-db:1
    volumes: ["data:/var/lib/postgresql/data", "./conf:/etc/pg:ro"]
    tmpfs: /run:size=16m
    stop_grace_period: 30s
    stop_signal: int
volumes:
  data:
"#;

#[test]
fn a_whole_app_is_read() {
    let loaded = read(&[("shop/compose.yaml", SHOP), ("$DEBUG", "yes")]).unwrap();
    insta::assert_snapshot!(serde_json::to_string_pretty(&loaded.app).unwrap());
    assert!(loaded.warnings.is_empty());
}

#[test]
fn every_problem_is_told_at_once_with_its_place() {
    let text = "\
services:
  web:
    imagee: x
    ports: ['80', '1:2:3:4', '0:1', 'a/sctp']
    cpus: many
  api:
    build: .
    restart: sometimes
    depends_on: [nobody]
    volumes: ['data:/data', 'x:relative']
    networks: [back]
    mem_limit: 1z
  Bad:
    image: y
volume: {}
";
    let error = read(&[("shop/compose.yaml", text)]).unwrap_err();
    insta::assert_snapshot!(error);
}

#[test]
fn what_cannot_work_together_is_refused() {
    for (why, text, want) in [
        ("no services", "name: x", "no services"),
        ("empty services", "services: {}", "no services"),
        ("cycle", "services: {a: {image: x, depends_on: [b]}, b: {image: x, depends_on: [a]}}", "waits for itself"),
        (
            "unhealthy for ever",
            "services: {a: {image: x, depends_on: {b: {condition: service_healthy}}}, b: {image: x}}",
            "it has no healthcheck",
        ),
        (
            "port twice",
            "services: {a: {image: x, ports: ['80:1']}, b: {image: x, ports: ['80:2']}}",
            "80 is published by `a` too",
        ),
        (
            "shared volume",
            "services: {a: {image: x, scale: 2, volumes: ['d:/d']}}\nvolumes: {d: }",
            "2 replicas cannot share the local volume `d`",
        ),
        (
            "apart",
            "services: {a: {image: x, networks: [n]}, b: {image: x, networks: [m]}}\nnetworks: {n: , m: }",
            "share no network",
        ),
        (
            "over-reserved",
            "services: {a: {image: x, mem_limit: 1m, mem_reservation: 2m}}",
            "more memory is reserved than the limit",
        ),
        ("gantry's own", "services: {a: {image: x}}\nx-gantry: {a: 1}", "x-gantry: not supported"),
        ("unset and required", "services: {a: {image: '${X:?give X}'}}", "required variable `X` is not set: give X"),
        ("secret that is not", "services: {a: {image: x, secrets: [s]}}", "`s` is not declared"),
        ("mode", "services: {a: {image: x, deploy: {mode: global}}}", "deploy.mode: not supported"),
    ] {
        let error = read(&[("d/compose.yaml", text)]).unwrap_err();
        assert!(error.contains(want), "{why}: {error}");
    }
}

#[test]
fn later_files_are_laid_over_earlier_ones() {
    let base = "name: x\nservices: {a: {image: i, command: [one, two], environment: [A=1, B=2], ports: ['1:1']}}";
    let over = "services: {a: {command: [three], environment: {B: 3}, ports: ['2:2']}}";
    let app = read(&[("d/a.yaml", base), ("d/b.yaml", over)]).unwrap().app;
    let service = &app.services[&"a".parse().unwrap()];
    assert_eq!(service.template.command, Some(vec!["three".to_owned()]));
    assert_eq!(service.template.environment, [("A".into(), "1".into()), ("B".into(), "3".into())].into());
    assert_eq!(service.ports.iter().map(|port| port.published).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn the_name_comes_from_option_file_variable_or_folder() {
    let plain = "services: {a: {image: x}}";
    let name = |files: &[(&'static str, &'static str)]| read(files).map(|loaded| loaded.app.name.to_string());
    assert_eq!(name(&[("d/My Shop.1/compose.yaml", plain)]).unwrap(), "myshop1");
    assert_eq!(name(&[("d/compose.yaml", "name: n\nservices: {a: {image: x}}")]).unwrap(), "n");
    assert_eq!(name(&[("d/compose.yaml", plain), ("$COMPOSE_PROJECT_NAME", "v")]).unwrap(), "v");
    assert!(name(&[("compose.yaml", plain)]).unwrap_err().contains("the app has no name"));
}

#[test]
fn variables_come_from_the_environment_then_the_file() {
    let text = "name: x\nservices: {a: {image: '$A-$B-$C', env_file: vars, environment: {OWN: '1'}}}";
    let files = [("d/compose.yaml", text), ("d/.env", "A=file\nB=file"), ("d/vars", "OWN=2\nMORE=3"), ("$A", "env")];
    let loaded = read(&files).unwrap();
    let template = &loaded.app.services[&"a".parse().unwrap()].template;
    assert_eq!(template.image, "env-file-");
    assert_eq!(template.environment, [("OWN".into(), "1".into()), ("MORE".into(), "3".into())].into());
    assert_eq!(loaded.warnings, ["variable `C` is not set; it is taken as empty"]);
}

#[test]
fn profiles_switch_services_on() {
    let text = "name: x\nservices: {a: {image: x}, b: {image: x, profiles: [debug]}}";
    let count = |profiles: &[&str]| {
        let profiles = profiles.iter().map(|name| (*name).to_owned()).collect();
        let request = Request { files: vec!["d/c.yaml".into()], profiles, ..Request::default() };
        load(&request, &Files([("d/c.yaml", text)].into())).unwrap().app.services.len()
    };
    assert_eq!(count(&[]), 1);
    assert_eq!(count(&["debug"]), 2);
}

#[test]
fn secrets_and_configs_become_files() {
    let text = r"
name: x
services:
  a:
    image: x
    configs: [{source: c, target: /etc/c.conf, mode: 0640, uid: '5'}]
    secrets: [s]
configs: {c: {content: hello}}
secrets: {s: {file: ./s.txt}}
";
    let app = read(&[("d/compose.yaml", text), ("d/s.txt", "hidden")]).unwrap().app;
    let files = &app.services[&"a".parse().unwrap()].template.files;
    assert_eq!(
        (files[0].target.as_str(), files[0].mode, files[0].uid, files[0].secret),
        ("/etc/c.conf", 0o640, 5, false)
    );
    assert_eq!(
        (files[1].target.as_str(), files[1].content.as_str(), files[1].secret),
        ("/run/secrets/s", "hidden", true)
    );
}

proptest::proptest! {
    #[test]
    fn no_text_panics(text in "[ -~\n]{0,200}") {
        let request = Request { files: vec!["d/c.yaml".into()], ..Request::default() };
        struct One(String);
        impl Host for One {
            fn read(&self, path: &Path) -> io::Result<String> {
                if path.ends_with("c.yaml") { Ok(self.0.clone()) } else { Err(io::ErrorKind::NotFound.into()) }
            }
            fn var(&self, _: &str) -> Option<String> { None }
        }
        let _ = load(&request, &One(text));
    }
}
