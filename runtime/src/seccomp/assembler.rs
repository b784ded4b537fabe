//! Classic BPF written backwards: every jump goes forward, so writing from the end means every target is known.
//!
//! A label is the number of instructions between an instruction and the end. Conditional jumps reach 255
//! instructions; beyond that an unconditional jump (or another copy of the result) is put in between.

use crate::sys::seccomp::Instruction;
use std::collections::BTreeMap;

/// Offset of the call number in `struct seccomp_data`.
pub(super) const NUMBER: u32 = 0;
/// Offset of the architecture.
pub(super) const ARCHITECTURE: u32 = 4;

const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_ABOVE: u16 = 0x25;
const JUMP_AT_LEAST: u16 = 0x35;
const AND: u16 = 0x54;
const RETURN: u16 = 0x06;

/// A program under construction, last instruction first.
#[derive(Default)]
pub(super) struct Assembler {
    reversed: Vec<Instruction>,
    /// The most recent `return` of each value.
    results: BTreeMap<u32, usize>,
}

impl Assembler {
    fn push(&mut self, instruction: Instruction) -> usize {
        self.reversed.push(instruction);
        self.reversed.len() - 1
    }

    /// Instructions between the next one to be written and `label`.
    fn distance(&self, label: usize) -> usize {
        self.reversed.len() - label - 1
    }

    /// Return a value to the kernel.
    pub(super) fn result(&mut self, value: u32) -> usize {
        if let Some(&label) = self.results.get(&value)
            && self.distance(label) < 200
        {
            return label;
        }
        let label = self.push(Instruction { code: RETURN, jt: 0, jf: 0, k: value });
        self.results.insert(value, label);
        label
    }

    /// Load a word of `struct seccomp_data`, then go to `next`.
    pub(super) fn load(&mut self, offset: u32, next: usize) -> usize {
        self.fall_to(next);
        self.push(Instruction { code: LOAD, jt: 0, jf: 0, k: offset })
    }

    /// Mask the loaded word, then go to `next`.
    pub(super) fn and(&mut self, mask: u32, next: usize) -> usize {
        self.fall_to(next);
        self.push(Instruction { code: AND, jt: 0, jf: 0, k: mask })
    }

    pub(super) fn jump_equal(&mut self, value: u32, yes: usize, no: usize) -> usize {
        self.branch(JUMP_EQUAL, value, yes, no)
    }

    pub(super) fn jump_above(&mut self, value: u32, yes: usize, no: usize) -> usize {
        self.branch(JUMP_ABOVE, value, yes, no)
    }

    pub(super) fn jump_at_least(&mut self, value: u32, yes: usize, no: usize) -> usize {
        self.branch(JUMP_AT_LEAST, value, yes, no)
    }

    /// Make sure that the next instruction written is followed by `next`.
    fn fall_to(&mut self, next: usize) {
        if self.distance(next) != 0 {
            self.relay(next);
        }
    }

    /// An instruction here that leads to `label`.
    fn relay(&mut self, label: usize) -> usize {
        let target = self.reversed[label];
        if target.code == RETURN {
            let copy = self.push(target);
            self.results.insert(target.k, copy);
            return copy;
        }
        let distance = self.distance(label) as u32;
        self.push(Instruction { code: JUMP, jt: 0, jf: 0, k: distance })
    }

    fn branch(&mut self, code: u16, value: u32, mut yes: usize, mut no: usize) -> usize {
        // One relay moves the other target by one, hence the margin.
        if self.distance(yes) > 254 {
            yes = self.relay(yes);
        }
        if self.distance(no) > 254 {
            no = self.relay(no);
        }
        let (jt, jf) = (self.distance(yes) as u8, self.distance(no) as u8);
        self.push(Instruction { code, jt, jf, k: value })
    }

    /// The program in order.
    pub(super) fn finish(mut self) -> Vec<Instruction> {
        self.reversed.reverse();
        self.reversed
    }
}
