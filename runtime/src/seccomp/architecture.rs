//! Instruction sets a process can make system calls for, and how each makes them.

use super::syscalls;

/// An instruction set, as the specification names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Architecture {
    X86_64,
    X86,
    X32,
    Aarch64,
    Arm,
    Mips,
    Mips64,
    Mips64n32,
    Mipsel,
    Mipsel64,
    Mipsel64n32,
    Ppc,
    Ppc64,
    Ppc64le,
    S390,
    S390x,
    Parisc,
    Parisc64,
    Riscv64,
    Loongarch64,
    M68k,
    Sh,
    Sheb,
}

use Architecture::{
    Aarch64, Arm, Loongarch64, M68k, Mips, Mips64, Mips64n32, Mipsel, Mipsel64, Mipsel64n32, Parisc, Parisc64, Ppc,
    Ppc64, Ppc64le, Riscv64, S390, S390x, Sh, Sheb, X32, X86, X86_64,
};

/// What sets one apart.
struct Facts {
    architecture: Architecture,
    /// After `SCMP_ARCH_`.
    name: &'static str,
    /// `AUDIT_ARCH_*`.
    audit: u32,
    /// Column in the table of numbers.
    column: usize,
    /// Arguments are 64 bits wide.
    wide: bool,
    /// `socketcall` and `ipc` carry other calls.
    multiplexes: bool,
    /// Those of one family run on one kernel.
    family: u8,
}

/// `__AUDIT_ARCH_64BIT`.
const BITS_64: u32 = 0x8000_0000;
/// `__AUDIT_ARCH_LE`.
const LITTLE: u32 = 0x4000_0000;
/// `__AUDIT_ARCH_CONVENTION_MIPS64_N32`.
const N32: u32 = 0x2000_0000;

const fn facts(
    architecture: Architecture,
    name: &'static str,
    audit: u32,
    column: usize,
    wide: bool,
    multiplexes: bool,
    family: u8,
) -> Facts {
    Facts { architecture, name, audit, column, wide, multiplexes, family }
}

/// In the order of [`Architecture`]. Numbers of machines: `linux/elf-em.h`; the rest: `linux/audit.h`.
#[rustfmt::skip]
static FACTS: [Facts; 23] = [
    facts(X86_64,      "X86_64",      62 | BITS_64 | LITTLE,       0, true,  false, 0),
    facts(X86,         "X86",         3 | LITTLE,                  1, false, true,  0),
    facts(X32,         "X32",         62 | BITS_64 | LITTLE,       2, false, false, 0),
    facts(Aarch64,     "AARCH64",     183 | BITS_64 | LITTLE,      3, true,  false, 1),
    facts(Arm,         "ARM",         40 | LITTLE,                 4, false, false, 1),
    facts(Mips,        "MIPS",        8,                           5, false, true,  2),
    facts(Mips64,      "MIPS64",      8 | BITS_64,                 6, true,  false, 2),
    facts(Mips64n32,   "MIPS64N32",   8 | BITS_64 | N32,           7, false, false, 2),
    facts(Mipsel,      "MIPSEL",      8 | LITTLE,                  5, false, true,  3),
    facts(Mipsel64,    "MIPSEL64",    8 | BITS_64 | LITTLE,        6, true,  false, 3),
    facts(Mipsel64n32, "MIPSEL64N32", 8 | BITS_64 | LITTLE | N32,  7, false, false, 3),
    facts(Ppc,         "PPC",         20,                          8, false, true,  4),
    facts(Ppc64,       "PPC64",       21 | BITS_64,                9, true,  true,  4),
    facts(Ppc64le,     "PPC64LE",     21 | BITS_64 | LITTLE,       9, true,  true,  5),
    facts(S390,        "S390",        22,                         10, false, true,  6),
    facts(S390x,       "S390X",       22 | BITS_64,               11, true,  true,  6),
    facts(Parisc,      "PARISC",      15,                         12, false, false, 7),
    facts(Parisc64,    "PARISC64",    15 | BITS_64,               13, true,  false, 7),
    facts(Riscv64,     "RISCV64",     243 | BITS_64 | LITTLE,     14, true,  false, 8),
    facts(Loongarch64, "LOONGARCH64", 258 | BITS_64 | LITTLE,     15, true,  false, 9),
    facts(M68k,        "M68K",        4,                          16, false, true,  10),
    facts(Sh,          "SH",          42 | LITTLE,                17, false, true,  11),
    facts(Sheb,        "SHEB",        42,                         17, false, true,  12),
];

/// Bit that marks an x32 call.
pub(super) const X32_BIT: u32 = 0x4000_0000;

impl Architecture {
    /// Of this program.
    pub(super) const NATIVE: Self = if cfg!(target_arch = "x86_64") {
        if cfg!(target_pointer_width = "32") { X32 } else { X86_64 }
    } else if cfg!(target_arch = "x86") {
        X86
    } else if cfg!(target_arch = "aarch64") {
        Aarch64
    } else if cfg!(target_arch = "arm") {
        Arm
    } else if cfg!(target_arch = "riscv64") {
        Riscv64
    } else if cfg!(target_arch = "loongarch64") {
        Loongarch64
    } else if cfg!(target_arch = "s390x") {
        S390x
    } else if cfg!(all(target_arch = "powerpc64", target_endian = "little")) {
        Ppc64le
    } else if cfg!(target_arch = "powerpc64") {
        Ppc64
    } else if cfg!(target_arch = "powerpc") {
        Ppc
    } else if cfg!(all(target_arch = "mips64", target_endian = "little")) {
        Mipsel64
    } else if cfg!(target_arch = "mips64") {
        Mips64
    } else if cfg!(all(target_arch = "mips", target_endian = "little")) {
        Mipsel
    } else if cfg!(target_arch = "mips") {
        Mips
    } else if cfg!(target_arch = "m68k") {
        M68k
    } else {
        panic!("the numbers of this processor's system calls are not known")
    };

    fn facts(self) -> &'static Facts {
        &FACTS[self as usize]
    }

    /// By its name in a profile.
    pub(super) fn parse(name: &str) -> Option<Self> {
        match name.strip_prefix("SCMP_ARCH_")? {
            "NATIVE" => Some(Self::NATIVE),
            name => FACTS.iter().find(|facts| facts.name == name).map(|facts| facts.architecture),
        }
    }

    /// Every name in a profile.
    pub(super) fn names() -> impl Iterator<Item = String> {
        FACTS.iter().map(|facts| format!("SCMP_ARCH_{}", facts.name))
    }

    /// `AUDIT_ARCH_*`.
    pub(super) fn audit(self) -> u32 {
        self.facts().audit
    }

    /// Its arguments are compared with all their 64 bits.
    pub(super) fn is_wide(self) -> bool {
        self.facts().wide
    }

    /// It has `socketcall` and `ipc`, which carry other calls.
    pub(super) fn multiplexes(self) -> bool {
        self.facts().multiplexes
    }

    /// Both can run on one kernel.
    pub(super) fn shares_kernel_with(self, other: Self) -> bool {
        self.facts().family == other.facts().family
    }

    /// Words have their low byte first.
    pub(super) fn is_little(self) -> bool {
        self.audit() & LITTLE != 0
    }

    /// What is added to the numbers in the table.
    pub(super) fn base(self) -> u32 {
        match self {
            X32 => X32_BIT,
            Mips | Mipsel => 4000,
            Mips64 | Mipsel64 => 5000,
            Mips64n32 | Mipsel64n32 => 6000,
            _ => 0,
        }
    }

    /// Call 0 does nothing but stand for numbers that do not fit into the instruction.
    pub(super) fn has_empty_call(self) -> bool {
        matches!(self, S390 | S390x)
    }

    /// The number of a row of the table, without the base.
    pub(super) fn number(self, row: u16) -> Option<u32> {
        syscalls::number(row, self.facts().column)
    }

    /// Offset of the low half of an argument in `struct seccomp_data`.
    pub(super) fn low(self, index: u32) -> u32 {
        16 + 8 * index + if self.is_little() { 0 } else { 4 }
    }

    /// Offset of its high half.
    pub(super) fn high(self, index: u32) -> u32 {
        16 + 8 * index + if self.is_little() { 4 } else { 0 }
    }
}

#[cfg(test)]
impl Architecture {
    pub(super) fn all() -> impl Iterator<Item = Self> {
        FACTS.iter().map(|facts| facts.architecture)
    }

    /// As libseccomp names it.
    pub(super) fn short_name(self) -> String {
        self.facts().name.to_lowercase()
    }
}
