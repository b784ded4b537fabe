//! `create`: everything but running the program.

use super::launching::{Common, CommonOptions, HasCommon, load};
use super::supervised::supervised;
use crate::args::{Command, Global, Operands, Opt, UsageError};
use crate::error::Outcome;
use crate::foreground::Signals;
use crate::launch::{self, Manner};
use crate::sealed;

/// `create`.
#[derive(Debug, Default)]
pub struct Create {
    common: Common,
}

impl HasCommon for Create {
    fn common(&mut self) -> &mut Common {
        &mut self.common
    }
}

impl Command for Create {
    const NAME: &'static str = "create";
    const SUMMARY: &'static str = "make a container from a bundle, without running its program";
    const OPERANDS: &'static str = "ID";
    const OPTIONS: &'static [&'static [Opt<Self>]] =
        &[CommonOptions::<Self>::LAUNCH, CommonOptions::<Self>::SUPERVISOR];

    fn operands(&mut self, operands: &mut Operands) -> Result<(), UsageError> {
        self.common.finish(operands.id()?)
    }

    fn run(&self, global: &Global) -> Outcome<i32> {
        sealed::ensure()?;
        let options = self.common.options(global);
        if let Some(settings) = &self.common.settings {
            return supervised(global, &options, settings, true);
        }
        let signals = Signals::hold()?;
        let bundle = load(global, &options.bundle)?;
        let manner = Manner { later: true, keep_terminal: false, stdio: None, supervised: false };
        launch::launch(&options, &bundle, manner, &signals)?;
        Ok(0)
    }
}
