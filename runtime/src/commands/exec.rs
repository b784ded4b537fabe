//! `exec`: a further process in a running container.

use crate::args::{Command, Global, Operands, Opt, UsageError};
use crate::container::capabilities;
use crate::error::{FAILED, Outcome};
use crate::exec::{self, Options, SubCgroup};
use crate::report;
use crate::sealed;

/// Exit code for a failure of our own, as runc's: 1 may come from the program.
const EXEC_FAILED: u8 = 255;

/// `exec`.
#[derive(Debug, Default)]
pub struct Exec {
    options: Options,
}

impl Command for Exec {
    const NAME: &'static str = "exec";
    const SUMMARY: &'static str = "run another program in a running container";
    const OPERANDS: &'static str = "ID COMMAND [ARG...]";
    const REST_AFTER: usize = 2;
    const OPTIONS: &'static [&'static [Opt<Self>]] = &[&[
        Opt::value("process", "FILE", "the process as JSON, instead of COMMAND", |exec: &mut Self, value| {
            value.path().map(|path| exec.options.process = Some(path))
        })
        .short('p'),
        Opt::switch("tty", "with a terminal", |exec: &mut Self, value| value.on().map(|on| exec.options.tty = on))
            .short('t'),
        Opt::value("console-socket", "PATH", "send the terminal to this unix socket", |exec: &mut Self, value| {
            value.path().map(|path| exec.options.console_socket = Some(path))
        }),
        Opt::value("cwd", "DIR", "working directory", |exec: &mut Self, value| {
            value.text().map(|text| exec.options.cwd = Some(text))
        }),
        Opt::value("env", "NAME=VALUE", "add to the environment; may be repeated", |exec: &mut Self, value| {
            value.text().map(|text| exec.options.env.0.push(text))
        })
        .short('e'),
        Opt::value("user", "UID[:GID]", "as this user", |exec: &mut Self, value| {
            value.user().map(|user| exec.options.user = Some(user))
        })
        .short('u'),
        Opt::value("additional-gids", "N", "another group; may be repeated", |exec: &mut Self, value| {
            value.number().map(|group| exec.options.additional_gids.push(group))
        })
        .short('g'),
        Opt::value("cap", "NAME", "another capability; may be repeated", |exec: &mut Self, value| {
            value.text().map(|name| exec.options.capabilities.push(name))
        })
        .short('c'),
        Opt::switch("no-new-privs", "set no_new_privs", |exec: &mut Self, value| {
            value.on().map(|on| exec.options.no_new_privs = on)
        }),
        Opt::switch("detach", "do not wait for it", |exec: &mut Self, value| {
            value.on().map(|on| exec.options.detach = on)
        })
        .short('d'),
        Opt::value("pid-file", "FILE", "write the number of the process here", |exec: &mut Self, value| {
            value.path().map(|path| exec.options.pid_file = Some(path))
        }),
        Opt::value(
            "pidfd-socket",
            "PATH",
            "send a pidfd of the process to this unix socket",
            |exec: &mut Self, value| value.path().map(|path| exec.options.pidfd_socket = Some(path)),
        ),
        Opt::value("apparmor", "PROFILE", "AppArmor profile of the process", |exec: &mut Self, value| {
            value.text().map(|text| exec.options.apparmor = Some(text))
        }),
        Opt::value("process-label", "LABEL", "SELinux label of the process", |exec: &mut Self, value| {
            value.text().map(|text| exec.options.process_label = Some(text))
        }),
        Opt::value("cgroup", "[CONTROLLER:]PATH", "in this cgroup below the container's", |exec: &mut Self, value| {
            let text = value.text()?;
            let place = SubCgroup::parse(&text)
                .ok_or_else(|| UsageError::new(format!("--cgroup: {text} is not a sub cgroup path")))?;
            exec.options.cgroups.push(place);
            Ok(())
        }),
        Opt::switch(
            "ignore-paused",
            "even if the container is paused: it runs after a resume",
            |exec: &mut Self, value| value.on().map(|on| exec.options.ignore_paused = on),
        ),
        Opt::value("preserve-fds", "N", "keep N descriptors beyond standard error open", |exec: &mut Self, value| {
            value.number().map(|number| exec.options.preserve_fds = number)
        }),
    ]];

    fn operands(&mut self, operands: &mut Operands) -> Result<(), UsageError> {
        self.options.id = operands.id()?;
        self.options.args = operands.rest();
        if self.options.args.is_empty() != self.options.process.is_some() {
            return Err(UsageError::new("`exec` needs either a command or --process"));
        }
        Ok(())
    }

    fn run(&self, global: &Global) -> Outcome<i32> {
        for name in self.options.capabilities.iter().filter(|name| capabilities::bit(name).is_none()) {
            // As in a bundle: fewer privileges isolate no less.
            report::warning(global, &format!("--cap: `{name}` is not a capability of Linux"));
        }
        let exec = || exec::exec(&Options { root: global.root.clone(), ..self.options.clone() });
        sealed::ensure().and_then(|()| exec()).map_err(|failure| match failure.code {
            FAILED => failure.code(EXEC_FAILED),
            _ => failure,
        })
    }
}
