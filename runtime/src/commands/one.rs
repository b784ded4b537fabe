//! The form of a command that takes a container and nothing else.

use crate::args::{Command, Global, Operands, Opt, UsageError};
use crate::error::Outcome;
use std::fmt;
use std::marker::PhantomData;

/// What such a command is called and does.
pub trait OnOne: fmt::Debug + Default + 'static {
    /// Its name on the command line.
    const NAME: &'static str;
    /// One line for the help.
    const SUMMARY: &'static str;

    /// Carry it out on the container `id`; returns the exit code.
    ///
    /// # Errors
    /// It failed.
    fn run(global: &Global, id: &str) -> Outcome<i32>;
}

/// The command.
#[derive(Debug, Default)]
pub struct One<C> {
    id: String,
    does: PhantomData<C>,
}

impl<C: OnOne> Command for One<C> {
    const NAME: &'static str = C::NAME;
    const SUMMARY: &'static str = C::SUMMARY;
    const OPERANDS: &'static str = "ID";
    const OPTIONS: &'static [&'static [Opt<Self>]] = &[];

    fn operands(&mut self, operands: &mut Operands) -> Result<(), UsageError> {
        self.id = operands.id()?;
        Ok(())
    }

    fn run(&self, global: &Global) -> Outcome<i32> {
        C::run(global, &self.id)
    }
}
