//! What is written behind `gantry run`, read as docker reads it, into plain values.

use super::error::LocalError;
use gantry_api::network::Published;
use gantry_api::spec::Protocol;
use gantry_api::units::{Bytes, MilliCpu};
use gantry_images::PullPolicy;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Run one container on this host, without any daemon.
///
/// In the foreground its exit code is the command's; 125 when Gantry itself failed, 126 when the command cannot be
/// executed, 127 when it is not there.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Run {
    /// Remove the container when it has ended.
    #[arg(long)]
    pub rm: bool,
    /// Keep standard input open.
    #[arg(long, short)]
    pub interactive: bool,
    /// Give it a terminal.
    #[arg(long, short)]
    pub tty: bool,
    /// Leave it running in the background and print its id.
    #[arg(long, short)]
    pub detach: bool,
    /// Name, to speak of it later.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Variable; without a value it is taken from here.
    #[arg(long, short, value_name = "KEY[=VALUE]")]
    pub env: Vec<String>,
    /// File with a variable on each line.
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Directory or file of this host, or a named volume, at a path inside.
    #[arg(long, short, value_name = "SOURCE:TARGET[:ro]")]
    pub volume: Vec<String>,
    /// Empty directory in memory.
    #[arg(long, value_name = "TARGET[:size=64m,mode=1777]")]
    pub tmpfs: Vec<String>,
    /// Open a port of this host to one of the container.
    #[arg(long, short, value_name = "HOST:CONTAINER[/udp]")]
    pub publish: Vec<String>,
    /// Directory to start in.
    #[arg(long, short, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User, and group.
    #[arg(long, short, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Host name inside.
    #[arg(long, short = 'h', value_name = "NAME")]
    pub hostname: Option<String>,
    /// Most memory.
    #[arg(long, short, value_name = "SIZE")]
    pub memory: Option<Bytes>,
    /// Most processors.
    #[arg(long, value_name = "NUMBER")]
    pub cpus: Option<MilliCpu>,
    /// Most processes and threads.
    #[arg(long, value_name = "NUMBER")]
    pub pids_limit: Option<i64>,
    /// Network: its own behind a bridge, none, or this host's.
    #[arg(long, value_enum, default_value_t = Network::Bridge)]
    pub network: Network,
    /// Most that it may write to its root file system; needs quotas of projects on the disk.
    #[arg(long, value_name = "size=SIZE", value_parser = storage_size)]
    pub storage_opt: Option<Bytes>,
    /// Root file system that cannot be written to.
    #[arg(long)]
    pub read_only: bool,
    /// Program in place of the image's entry point.
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Capability to add; ALL is all.
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_add: Vec<String>,
    /// Capability to drop; ALL is all.
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_drop: Vec<String>,
    /// No confinement beyond namespaces.
    #[arg(long)]
    pub privileged: bool,
    /// A small init as PID 1 that passes signals on and reaps orphans.
    #[arg(long)]
    pub init: bool,
    /// Signal that asks it to stop.
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<String>,
    /// When to ask the registry for the image.
    #[arg(long, value_enum, default_value_t = Pull::Missing)]
    pub pull: Pull,
    /// Registry that is spoken to over plain HTTP.
    #[arg(long, value_name = "HOST[:PORT]")]
    pub insecure_registry: Vec<String>,
    /// Print help.
    #[arg(long, action = clap::ArgAction::Help)]
    pub help: Option<bool>,
    /// Image.
    pub image: String,
    /// Command in place of the image's.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// When to ask the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Pull {
    /// If the image is not here.
    Missing,
    /// Each time.
    Always,
    /// Not at all.
    Never,
}

impl From<Pull> for PullPolicy {
    fn from(pull: Pull) -> Self {
        match pull {
            Pull::Missing => Self::Missing,
            Pull::Always => Self::Always,
            Pull::Never => Self::Never,
        }
    }
}

/// Which network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// Its own, behind a bridge of this host.
    Bridge,
    /// Loopback only.
    None,
    /// This host's.
    Host,
}

/// Something to mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// What.
    pub source: Source,
    /// Absolute path inside.
    pub target: String,
    /// Not to be written to.
    pub read_only: bool,
    /// More mount options.
    pub options: Vec<String>,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A file or directory of this host.
    Path(PathBuf),
    /// A volume that outlives the container.
    Named(String),
    /// A volume that goes with the container.
    Anonymous,
    /// Memory.
    Tmpfs,
}

/// All that a container is made from, besides its image; kept, so that it can be started again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Wish {
    /// Program in place of the image's entry point.
    pub entrypoint: Option<Vec<String>>,
    /// In place of the image's.
    pub command: Option<Vec<String>>,
    /// `KEY=VALUE`.
    pub env: Vec<String>,
    /// Mounts.
    pub volumes: Vec<Volume>,
    /// Ports.
    pub ports: Vec<Published>,
    /// Directory to start in.
    pub workdir: Option<String>,
    /// User.
    pub user: Option<String>,
    /// Host name.
    pub hostname: Option<String>,
    /// Bytes.
    pub memory: Option<u64>,
    /// Thousandths of a processor.
    pub cpu_millis: Option<u64>,
    /// Processes.
    pub pids: Option<i64>,
    /// Network.
    pub network: Network,
    /// Root file system.
    pub read_only: bool,
    /// Bytes that it may write there.
    #[serde(default)]
    pub storage: Option<u64>,
    /// Capabilities.
    pub cap_add: Vec<String>,
    /// Capabilities.
    pub cap_drop: Vec<String>,
    /// No confinement.
    pub privileged: bool,
    /// Signal that asks it to stop.
    pub stop_signal: Option<String>,
    /// A small init as PID 1.
    #[serde(default)]
    pub init: bool,
    /// Standard input stays open.
    pub interactive: bool,
    /// Terminal.
    pub tty: bool,
}

impl Run {
    /// Checks everything that can be checked without doing anything.
    ///
    /// # Errors
    /// The first option that is wrong, and its rule.
    pub fn wish(&self) -> Result<Wish, LocalError> {
        let here = std::env::current_dir().map_err(LocalError::kernel("find the working directory"))?;
        let mut env = Vec::new();
        for file in &self.env_file {
            let text = std::fs::read_to_string(file).map_err(LocalError::file("read", file))?;
            env.extend(env_lines(&text));
        }
        env.extend(self.env.iter().filter_map(|word| env_word(word)));
        if let Some(wrong) = env.iter().find(|word| word.starts_with('=')) {
            return Err(LocalError::option("variable", wrong, "write KEY=VALUE"));
        }
        let mut volumes = Vec::new();
        for text in &self.volume {
            volumes.push(volume(text, &here)?);
        }
        for text in &self.tmpfs {
            volumes.push(tmpfs(text)?);
        }
        let mut ports = Vec::new();
        for text in &self.publish {
            ports.extend(publish(text)?);
        }
        if let Some(twice) = twice(&ports) {
            let rule = "each port of this host leads to one port of the container";
            return Err(LocalError::option("way to publish", format!("-p {} twice", twice.published), rule));
        }
        if !ports.is_empty() && self.network != Network::Bridge {
            let rule = "a port can be published only with `--network bridge`; with `host` the program opens it itself";
            return Err(LocalError::option("way to publish", self.publish.join(" "), rule));
        }
        if let Some(name) = &self.name {
            check_name(name)?;
        }
        if let Some(name) = self.hostname.as_deref().filter(|name| name.is_empty() || name.len() > 63) {
            return Err(LocalError::option("host name", name, "use 1 to 63 characters"));
        }
        if let Some(signal) = &self.stop_signal {
            check_signal(signal)?;
        }
        if self.detach && self.interactive && !self.tty {
            return Err(LocalError::option(
                "way to run",
                "-d -i",
                "nothing can be typed into a container in the background",
            ));
        }
        let words = |words: &[String]| (!words.is_empty()).then(|| words.to_vec());
        Ok(Wish {
            // As docker: an empty text takes the image's entry point away.
            entrypoint: self.entrypoint.as_ref().map(|p| if p.is_empty() { Vec::new() } else { vec![p.clone()] }),
            command: words(&self.command),
            env,
            volumes,
            ports,
            workdir: self.workdir.clone(),
            user: self.user.clone(),
            hostname: self.hostname.clone(),
            memory: self.memory.map(|bytes| bytes.0).filter(|bytes| *bytes > 0),
            cpu_millis: self.cpus.map(|cpu| u64::from(cpu.0)).filter(|millis| *millis > 0),
            pids: self.pids_limit.filter(|pids| *pids > 0),
            network: self.network,
            read_only: self.read_only,
            storage: self.storage_opt.map(|bytes| bytes.0),
            cap_add: self.cap_add.clone(),
            cap_drop: self.cap_drop.clone(),
            privileged: self.privileged,
            stop_signal: self.stop_signal.clone(),
            init: self.init,
            interactive: self.interactive,
            tty: self.tty,
        })
    }
}

/// `size=SIZE`, the only one of docker's storage options that means something here.
fn storage_size(text: &str) -> Result<Bytes, String> {
    let size = text.strip_prefix("size=").ok_or("write size=SIZE, such as size=1g")?;
    size.parse::<Bytes>().ok().filter(|size| size.0 > 0).ok_or_else(|| format!("`{size}` is no size"))
}

/// A port that is published more than once.
fn twice(ports: &[Published]) -> Option<Published> {
    let same = |a: &Published, b: &Published| a.published == b.published && a.protocol == b.protocol;
    ports.iter().enumerate().find(|(at, port)| ports[..*at].iter().any(|other| same(other, port))).map(|(_, p)| *p)
}

/// A signal by name, with or without `SIG`, or by number.
fn check_signal(text: &str) -> Result<(), LocalError> {
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let real_time = ["RTMIN", "RTMAX"].iter().any(|first| name.starts_with(first));
    let known = format!("SIG{name}").parse::<nix::sys::signal::Signal>().is_ok() || real_time;
    if known || text.parse::<i32>().is_ok_and(|number| (1..=64).contains(&number)) {
        return Ok(());
    }
    Err(LocalError::option("signal", text, "write a name such as TERM or SIGQUIT, or a number"))
}

/// The rule for a container's name.
///
/// # Errors
/// The rule.
pub fn check_name(name: &str) -> Result<(), LocalError> {
    let first = name.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric());
    let inner = name.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'));
    if first && inner && name.len() <= 63 {
        return Ok(());
    }
    let rule = "use 1 to 63 letters, digits, `-`, `_` and `.`, beginning with a letter or digit";
    Err(LocalError::option("container name", name, rule))
}

/// `KEY=VALUE` as it is; `KEY` with the value it has here, nothing when it has none.
fn env_word(word: &str) -> Option<String> {
    if word.contains('=') {
        return Some(word.to_owned());
    }
    std::env::var(word).ok().map(|value| format!("{word}={value}"))
}

/// docker's format: no quotes, `#` only at the beginning of a line.
fn env_lines(text: &str) -> Vec<String> {
    let lines = text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.filter_map(env_word).collect()
}

fn absolute_target(target: &str) -> Result<String, LocalError> {
    if target.starts_with('/') && !target.trim_matches('/').is_empty() {
        return Ok(target.to_owned());
    }
    Err(LocalError::option("mount target", target, "it must be an absolute path, and not `/`"))
}

/// `SOURCE:TARGET[:OPTIONS]`, or a target alone.
fn volume(text: &str, here: &Path) -> Result<Volume, LocalError> {
    let wrong = |rule: &str| LocalError::option("volume", text, rule);
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match *parts.as_slice() {
        [target] => ("", target, ""),
        [source, target] => (source, target, ""),
        [source, target, options] => (source, target, options),
        _ => return Err(wrong("write SOURCE:TARGET or SOURCE:TARGET:ro")),
    };
    let source = if parts.len() == 1 {
        Source::Anonymous
    } else if source.starts_with('/') || source.starts_with('.') || source.starts_with('~') {
        if source.starts_with('~') {
            return Err(wrong("the shell, not Gantry, replaces `~`: write $HOME"));
        }
        Source::Path(clean(&here.join(source)))
    } else {
        check_name(source)
            .map_err(|_| wrong("its source is neither a path with a `/` in front nor a volume's name"))?;
        Source::Named(source.to_owned())
    };
    let mut volume = Volume { source, target: absolute_target(target)?, read_only: false, options: Vec::new() };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" | "readonly" => volume.read_only = true,
            "rw" => volume.read_only = false,
            "shared" | "rshared" | "slave" | "rslave" | "private" | "rprivate" => {
                volume.options.push(option.to_owned())
            }
            // Labels of SELinux, which is not used here; they would change nothing.
            "z" | "Z" => {}
            _ => return Err(wrong("its options are ro, rw, and the mount propagations such as rshared")),
        }
    }
    Ok(volume)
}

/// Without `.` and `..`, by the text alone.
fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => drop(out.pop()),
            std::path::Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

fn tmpfs(text: &str) -> Result<Volume, LocalError> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    let mut volume =
        Volume { source: Source::Tmpfs, target: absolute_target(target)?, read_only: false, options: Vec::new() };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => volume.read_only = true,
            "rw" => volume.read_only = false,
            other => volume.options.push(other.to_owned()),
        }
    }
    Ok(volume)
}

/// `[0.0.0.0:]HOST:CONTAINER[/PROTOCOL]`, each a port or a range.
fn publish(text: &str) -> Result<Vec<Published>, LocalError> {
    let wrong = |rule: &str| LocalError::option("port to publish", text, rule);
    let (ports, protocol) = match text.split_once('/') {
        None => (text, Protocol::Tcp),
        Some((ports, "tcp")) => (ports, Protocol::Tcp),
        Some((ports, "udp")) => (ports, Protocol::Udp),
        Some(_) => return Err(wrong("the protocol is tcp or udp")),
    };
    let (host, target) = match *ports.split(':').collect::<Vec<_>>().as_slice() {
        [host, target] => (host, target),
        ["0.0.0.0", host, target] => (host, target),
        [_, _, _] => return Err(wrong("a port is opened on all addresses of this host; leave the address away")),
        [_] => return Err(wrong("name this host's port too, as in 8080:80")),
        _ => return Err(wrong("write HOST:CONTAINER, as in 8080:80")),
    };
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (first.parse::<u16>().ok()?, last.parse::<u16>().ok()?);
        (first > 0 && first <= last).then_some(first..=last)
    };
    let rule = "ports are numbers from 1 to 65535, or ranges such as 8000-8005";
    let (Some(host), Some(target)) = (range(host), range(target)) else {
        return Err(wrong(rule));
    };
    if host.len() != target.len() {
        return Err(wrong("both ranges must be of the same length"));
    }
    Ok(host.zip(target).map(|(published, target)| Published { published, target, protocol }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    #[command(name = "gantry")]
    struct Line {
        #[command(subcommand)]
        command: Only,
    }

    #[derive(Debug, clap::Subcommand)]
    enum Only {
        Run(Run),
    }

    fn parse(words: &str) -> Result<Run, clap::Error> {
        let Only::Run(run) =
            Line::try_parse_from(["gantry", "run"].into_iter().chain(words.split_whitespace()))?.command;
        Ok(run)
    }

    #[test]
    fn volumes_are_read_as_docker_reads_them() {
        let show = |text: &str| match volume(text, Path::new("/here/sub")) {
            Ok(Volume { source, target, read_only, options }) => {
                let source = match source {
                    Source::Path(path) => path.display().to_string(),
                    Source::Named(name) => format!("<{name}>"),
                    Source::Anonymous => "<>".to_owned(),
                    Source::Tmpfs => "tmpfs".to_owned(),
                };
                format!("{source} {target}{}{}", if read_only { " ro" } else { "" }, options.join(","))
            }
            Err(_) => "wrong".to_owned(),
        };
        for (text, want) in [
            ("/a:/b", "/a /b"),
            ("/a:/b:ro", "/a /b ro"),
            ("./x:/b:rw", "/here/sub/x /b"),
            ("../x:/b", "/here/x /b"),
            (".:/b:ro,rslave", "/here/sub /b rorslave"),
            ("data:/b", "<data> /b"),
            ("/b", "<> /b"),
            ("/a:/b:z", "/a /b"),
            ("/a:b", "wrong"),
            ("/a:/", "wrong"),
            ("/a:/b:what", "wrong"),
            ("/a:/b:ro:x", "wrong"),
            ("~/a:/b", "wrong"),
            ("a/b:/c", "wrong"),
            (":/b", "wrong"),
            ("", "wrong"),
        ] {
            assert_eq!(show(text), want, "{text}");
        }
    }

    #[test]
    fn ports_are_read_as_docker_reads_them() {
        let show = |text: &str| match publish(text) {
            Ok(ports) => {
                ports.iter().map(|p| format!("{}:{}{:?} ", p.published, p.target, p.protocol)).collect::<String>()
            }
            Err(error) => error.to_string(),
        };
        for (text, want) in [
            ("8080:80", "8080:80Tcp "),
            ("8080:80/udp", "8080:80Udp "),
            ("0.0.0.0:8080:80/tcp", "8080:80Tcp "),
            ("8000-8001:80-81", "8000:80Tcp 8001:81Tcp "),
        ] {
            assert_eq!(show(text), want);
        }
        for (text, part) in [
            ("80", "name this host's port too"),
            ("127.0.0.1:80:80", "all addresses"),
            ("0:80", "1 to 65535"),
            ("70000:80", "1 to 65535"),
            ("8001-8000:1-2", "1 to 65535"),
            ("8000-8001:80", "same length"),
            ("80:80/sctp", "tcp or udp"),
            ("a:b:c:d", "HOST:CONTAINER"),
            ("", "name this host's port"),
        ] {
            assert!(show(text).contains(part), "{text}: {}", show(text));
        }
    }

    #[test]
    fn a_command_line_becomes_a_wish() {
        let wish = parse(
            "--rm -it -e A=1 -e GANTRY_SURELY_UNSET --tmpfs /tmp:size=1m -m 64m --cpus 0.5 --pids-limit 10 -u 1:2 -w /srv \
             -h box --network none --read-only --entrypoint /x --cap-drop ALL busybox -c echo --rm",
        )
        .unwrap()
        .wish()
        .unwrap();
        assert_eq!(wish.command.unwrap(), ["-c", "echo", "--rm"]);
        assert_eq!(wish.env, ["A=1"]);
        assert_eq!((wish.memory, wish.cpu_millis, wish.pids), (Some(64 << 20), Some(500), Some(10)));
        assert_eq!(
            (wish.hostname.as_deref(), wish.network, wish.entrypoint.unwrap().len()),
            (Some("box"), Network::None, 1)
        );
        assert_eq!(wish.volumes[0].options, ["size=1m"]);
        for (words, good) in [
            ("busybox", true),
            ("--entrypoint= busybox", true),
            ("-d -t -i busybox", true),
            ("-d -i busybox", false),
            ("-p 80:80 --network host busybox", false),
            ("-p 80:80 -p 80:81 busybox", false),
            ("-p 80-82:80-82 -p 81:81 busybox", false),
            ("-p 80:80 -p 80:80/udp busybox", true),
            ("--stop-signal SIGQUIT busybox", true),
            ("--stop-signal usr1 busybox", true),
            ("--stop-signal 37 busybox", true),
            ("--stop-signal FOO busybox", false),
            ("--stop-signal 0 busybox", false),
            ("--name -x busybox", false),
            ("--name a/b busybox", false),
            ("-m lots busybox", false),
            ("--storage-opt size=64m busybox", true),
            ("--storage-opt size=0 busybox", false),
            ("--storage-opt 64m busybox", false),
            ("--network mesh busybox", false),
            ("--env-file /no/such/file busybox", false),
            ("-e =x busybox", false),
            ("", false),
        ] {
            assert_eq!(parse(words).is_ok_and(|run| run.wish().is_ok()), good, "{words}");
        }
    }

    #[test]
    fn env_files_are_docker_s() {
        assert_eq!(env_lines("# no\n\nA=1\n  B=x # y\nC=\"q\"\nGANTRY_SURELY_UNSET\n"), ["A=1", "B=x # y", "C=\"q\""]);
    }
}
