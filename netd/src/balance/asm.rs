//! An assembler for eBPF: typed operands, labels instead of distances, maps by name. It touches nothing.

use crate::sys::bpf::Instruction;

/// A register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reg {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    /// The end of the stack frame: read only.
    Frame,
}

/// A register or a constant.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Operand {
    Register(Reg),
    Constant(i32),
}

impl From<Reg> for Operand {
    fn from(register: Reg) -> Self {
        Self::Register(register)
    }
}

impl From<i32> for Operand {
    fn from(constant: i32) -> Self {
        Self::Constant(constant)
    }
}

/// 64-bit arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Op {
    Add = 0x00,
    Sub = 0x10,
    Mul = 0x20,
    And = 0x50,
    ShiftLeft = 0x60,
    ShiftRight = 0x70,
    Modulo = 0x90,
    Xor = 0xa0,
    Move = 0xb0,
}

/// Unsigned 64-bit comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum If {
    Equal = 0x10,
    Greater = 0x20,
    GreaterOrEqual = 0x30,
    NotEqual = 0x50,
    Less = 0xa0,
}

/// Of a load or a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Size {
    /// 32 bits; a load clears the upper half.
    Word = 0x00,
    /// 64 bits.
    Double = 0x18,
}

/// The kernel's functions in use here, by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Helper {
    MapLookup = 1,
    Random = 7,
    SocketStorage = 107,
    NamespaceCookie = 122,
}

/// A place in the code, perhaps still ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Label(usize);

const ALU64: u8 = 0x07;
const JUMP: u8 = 0x05;
const FROM_REGISTER: u8 = 0x08;
const LOAD: u8 = 0x61;
const STORE: u8 = 0x63;
const STORE_CONSTANT: u8 = 0x62;
const ATOMIC: u8 = 0xc3;
pub(crate) const LOAD_CONSTANT: u8 = 0x18;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// In the source register of a 64-bit constant: the constant is a map's descriptor.
const MAP_DESCRIPTOR: u8 = 1;

/// A program whose maps are named by `M`.
#[derive(Debug)]
pub(crate) struct Assembler<M> {
    code: Vec<Instruction>,
    labels: Vec<Option<usize>>,
    jumps: Vec<(usize, Label)>,
    maps: Vec<(usize, M)>,
}

/// A finished program: only the maps' descriptors are missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Code<M> {
    instructions: Vec<Instruction>,
    maps: Vec<(usize, M)>,
}

impl<M: Copy> Assembler<M> {
    pub(crate) fn new() -> Self {
        Self { code: Vec::new(), labels: Vec::new(), jumps: Vec::new(), maps: Vec::new() }
    }

    fn emit(&mut self, code: u8, to: Reg, from: u8, offset: i16, immediate: i32) {
        self.code.push(Instruction { code, registers: to as u8 | from << 4, offset, immediate });
    }

    fn with_operand(&mut self, code: u8, to: Reg, operand: Operand, offset: i16) {
        match operand {
            Operand::Register(from) => self.emit(code | FROM_REGISTER, to, from as u8, offset, 0),
            Operand::Constant(value) => self.emit(code, to, 0, offset, value),
        }
    }

    /// `to = to OP operand` (for [`Op::Move`]: `to = operand`); a constant is sign-extended.
    pub(crate) fn op(&mut self, op: Op, to: Reg, operand: impl Into<Operand>) {
        self.with_operand(ALU64 | op as u8, to, operand.into(), 0);
    }

    pub(crate) fn set(&mut self, to: Reg, operand: impl Into<Operand>) {
        self.op(Op::Move, to, operand);
    }

    pub(crate) fn set_long(&mut self, to: Reg, value: u64) {
        self.emit(LOAD_CONSTANT, to, 0, 0, value as i32);
        self.code.push(Instruction { immediate: (value >> 32) as i32, ..Instruction::default() });
    }

    pub(crate) fn set_map(&mut self, to: Reg, map: M) {
        self.maps.push((self.code.len(), map));
        self.emit(LOAD_CONSTANT, to, MAP_DESCRIPTOR, 0, 0);
        self.code.push(Instruction::default());
    }

    /// `to = *(from + offset)`
    pub(crate) fn load(&mut self, size: Size, to: Reg, from: Reg, offset: i16) {
        self.emit(LOAD | size as u8, to, from as u8, offset, 0);
    }

    /// `*(to + offset) = from`
    pub(crate) fn store(&mut self, size: Size, to: Reg, offset: i16, from: Reg) {
        self.emit(STORE | size as u8, to, from as u8, offset, 0);
    }

    /// `*(to + offset) = constant`
    pub(crate) fn store_constant(&mut self, size: Size, to: Reg, offset: i16, constant: i32) {
        self.emit(STORE_CONSTANT | size as u8, to, 0, offset, constant);
    }

    /// `*(to + offset) += from`, at once for all processors.
    pub(crate) fn atomic_add(&mut self, size: Size, to: Reg, offset: i16, from: Reg) {
        self.emit(ATOMIC | size as u8, to, from as u8, offset, 0);
    }

    /// `r0` = the answer; `r1` to `r5` are lost.
    pub(crate) fn call(&mut self, helper: Helper) {
        self.emit(CALL, Reg::R0, 0, 0, helper as i32);
    }

    pub(crate) fn exit(&mut self) {
        self.emit(EXIT, Reg::R0, 0, 0, 0);
    }

    pub(crate) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// The label is here.
    pub(crate) fn here(&mut self, label: Label) {
        assert!(self.labels[label.0].is_none(), "a label has one place");
        self.labels[label.0] = Some(self.code.len());
    }

    pub(crate) fn jump(&mut self, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.emit(JUMP, Reg::R0, 0, 0, 0);
    }

    pub(crate) fn jump_if(&mut self, left: Reg, condition: If, right: impl Into<Operand>, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.with_operand(JUMP | condition as u8, left, right.into(), 0);
    }

    /// Put the distances in.
    pub(crate) fn finish(mut self) -> Code<M> {
        for (at, label) in self.jumps {
            let target = self.labels[label.0].expect("every label that is jumped to has a place");
            let distance = target as i64 - at as i64 - 1;
            self.code[at].offset = i16::try_from(distance).expect("programs are shorter than a jump is far");
        }
        Code { instructions: self.code, maps: self.maps }
    }
}

impl<M: Copy> Code<M> {
    /// The program with the maps' descriptors in it.
    pub(crate) fn with_maps(&self, descriptor: impl Fn(M) -> i32) -> Vec<Instruction> {
        let mut code = self.instructions.clone();
        for (at, map) in &self.maps {
            code[*at].immediate = descriptor(*map);
        }
        code
    }

    /// A number that changes with the program.
    pub(crate) fn fingerprint(&self, number: impl Fn(M) -> i32) -> u64 {
        let bytes = self.with_maps(number).into_iter().flat_map(|i| {
            let [a, b] = i.offset.to_le_bytes();
            let [c, d, e, f] = i.immediate.to_le_bytes();
            [i.code, i.registers, a, b, c, d, e, f]
        });
        crate::hash::fnv1a(&bytes.collect::<Vec<u8>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Reg::{Frame, R0, R1, R2, R9};

    fn bytes(build: impl FnOnce(&mut Assembler<u8>)) -> String {
        let mut asm = Assembler::new();
        build(&mut asm);
        let words = asm
            .finish()
            .with_maps(i32::from)
            .into_iter()
            .map(|i| format!("{:02x} {:02x} {:04x} {:08x}", i.code, i.registers, i.offset, i.immediate));
        words.collect::<Vec<_>>().join(", ")
    }

    /// The right column is what `llvm-mc -triple bpf` and the kernel's own macros give.
    #[test]
    fn each_instruction() {
        type Build = fn(&mut Assembler<u8>);
        let cases: [(&str, Build, &str); 12] = [
            ("r2 = r1", |a| a.set(R2, R1), "bf 12 0000 00000000"),
            ("r1 = -1", |a| a.set(R1, -1), "b7 01 0000 ffffffff"),
            ("r1 += 8", |a| a.op(Op::Add, R1, 8), "07 01 0000 00000008"),
            ("r9 %= r1", |a| a.op(Op::Modulo, R9, R1), "9f 19 0000 00000000"),
            ("r1 = *(u32 *)(r0 + 12)", |a| a.load(Size::Word, R1, R0, 12), "61 01 000c 00000000"),
            ("r1 = *(u64 *)(fp - 8)", |a| a.load(Size::Double, R1, Frame, -8), "79 a1 fff8 00000000"),
            ("*(u32 *)(fp - 4) = r2", |a| a.store(Size::Word, Frame, -4, R2), "63 2a fffc 00000000"),
            ("*(u32 *)(r1 + 4) = 7", |a| a.store_constant(Size::Word, R1, 4, 7), "62 01 0004 00000007"),
            ("lock *(u32 *)(r0 + 12) += r1", |a| a.atomic_add(Size::Word, R0, 12, R1), "c3 10 000c 00000000"),
            ("lock *(u64 *)(r0 + 24) += r1", |a| a.atomic_add(Size::Double, R0, 24, R1), "db 10 0018 00000000"),
            ("r1 = map 5", |a| a.set_map(R1, 5), "18 11 0000 00000005, 00 00 0000 00000000"),
            ("r1 = 64 bits", |a| a.set_long(R1, 0x1122_3344_5566_7788), "18 01 0000 55667788, 00 00 0000 11223344"),
        ];
        for (what, build, expected) in cases {
            assert_eq!(bytes(build), expected, "{what}");
        }
        assert_eq!(bytes(|a| a.call(Helper::MapLookup)), "85 00 0000 00000001");
        assert_eq!(bytes(|a| a.exit()), "95 00 0000 00000000");
    }

    #[test]
    fn jumps_forth_and_back() {
        let text = bytes(|a| {
            let (start, end) = (a.label(), a.label());
            a.here(start);
            a.jump_if(R1, If::Equal, 0, end);
            a.jump_if(R1, If::Less, R2, start);
            a.jump(end);
            a.here(end);
            a.exit();
        });
        assert_eq!(text, "15 01 0002 00000000, ad 21 fffe 00000000, 05 00 0000 00000000, 95 00 0000 00000000");
    }

    #[test]
    #[should_panic(expected = "has a place")]
    fn a_label_without_a_place_is_our_mistake() {
        bytes(|a| {
            let label = a.label();
            a.jump(label);
        });
    }

    #[test]
    fn a_fingerprint_changes_with_the_code() {
        let one = |constant| {
            let mut asm = Assembler::<u8>::new();
            asm.set(R0, constant);
            asm.exit();
            asm.finish().fingerprint(i32::from)
        };
        assert_eq!(one(1), one(1));
        assert_ne!(one(1), one(0));
    }
}
