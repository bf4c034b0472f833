//! Matmul with AMX: tiles of 16 rows × 64 bytes. `tdpbssd` multiplies signed by signed codes and
//! sums fours.
//!
//! Weights are the first operand, as they lie in memory, and a panel of activations is the second:
//! its steps are the rows AMX expects. So only activations are packed, and few rows are as
//! efficient as many. std's intrinsics for AMX are unstable, so this is assembly; no other code
//! here uses tile registers.

#![expect(unsafe_code, reason = "assembly, and a system call")]

use super::panels::{LANES, STEP_BYTES, TILE, Tile, Weights};
use crate::Isa;
use crate::isa::Kind;
use std::arch::asm;

/// Steps of a panel that one instruction consumes.
const STEPS: usize = 16;

/// Whether the CPU has AMX and the kernel lets this process use it.
#[cfg(target_os = "linux")]
pub(super) fn available() -> bool {
    use std::sync::OnceLock;
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        // CPUID leaf 7, EDX: bit 24 is AMX-TILE, bit 25 AMX-INT8.
        let leaf = std::arch::x86_64::__cpuid_count(7, 0);
        let has = std::arch::x86_64::__cpuid(0).eax >= 7 && leaf.edx >> 24 & 0b11 == 0b11;

        // The tile state is 8 KiB, so Linux saves it only for processes that request it:
        // ARCH_REQ_XCOMP_PERM of XFEATURE_XTILEDATA.
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XTILEDATA: libc::c_long = 18;

        // SAFETY: the system call takes two numbers and accesses no memory of this process.
        has && unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) } == 0
    })
}

/// Requesting the tile state is only implemented for Linux.
#[cfg(not(target_os = "linux"))]
pub(super) fn available() -> bool {
    false
}

/// The operand of `ldtilecfg`: the shapes of the tile registers.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

/// All eight registers at full size, 16 rows × 64 bytes.
static CONFIG: TileConfig = TileConfig {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    bytes_per_row: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Fills `tile` with the sums of up to two panels `a`, each `panel` bytes, and 32 rows of weights.
/// Each loaded tile is used twice.
pub(super) fn tile(isa: Isa, a: &[u8], panel: usize, w: &Weights<'_>, tile: &mut Tile) {
    assert!(
        isa.kind() == Kind::Amx && a.len().is_multiple_of(panel) && w.steps.is_multiple_of(STEPS)
    );
    assert!(panel >= w.steps * STEP_BYTES && w.data.len() >= (TILE - 1) * w.stride + w.steps * 4);

    let panels = a.len() / panel;
    assert!((1..=2).contains(&panels) && panels * LANES <= tile[0].len());

    if w.steps == 0 {
        return;
    }

    // With one panel, the second is the first again and writes the same sums.
    let second = (panels - 1) * LANES;

    // SAFETY: an `Isa` of kind Amx exists only where CPU and kernel allow AMX. Reads: 32 rows of
    // `w.steps` dwords, `w.stride` apart, and panels of `w.steps` steps of 64 bytes. Writes: 32
    // rows of 16 values, one row of `Tile` apart. The lengths of all were checked above, and
    // `tilerelease` frees the tile state.
    unsafe {
        asm!(
            "ldtilecfg [{config}]",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{w0} + {stride} * 1]",
            "tileloadd tmm6, [{x0} + {step} * 1]",
            "tdpbssd tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{x1} + {step} * 1]",
            "tdpbssd tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{w1} + {stride} * 1]",
            "tdpbssd tmm2, tmm5, tmm6",
            "tdpbssd tmm3, tmm5, tmm7",
            "add {w0}, 64",
            "add {w1}, 64",
            "add {x0}, 1024",
            "add {x1}, 1024",
            "dec {count}",
            "jnz 2b",
            "tilestored [{to0} + {row} * 1], tmm0",
            "tilestored [{to1} + {row} * 1], tmm1",
            "tilestored [{to2} + {row} * 1], tmm2",
            "tilestored [{to3} + {row} * 1], tmm3",
            "tilerelease",
            config = in(reg) &raw const CONFIG,
            w0 = inout(reg) w.data.as_ptr() => _,
            w1 = inout(reg) w.data[LANES * w.stride..].as_ptr() => _,
            stride = in(reg) w.stride,
            x0 = inout(reg) a.as_ptr() => _,
            x1 = inout(reg) a[(panels - 1) * panel..].as_ptr() => _,
            step = in(reg) STEP_BYTES,
            count = inout(reg) w.steps / STEPS => _,
            to0 = in(reg) tile[0].as_mut_ptr(),
            to1 = in(reg) tile[0][second..].as_mut_ptr(),
            to2 = in(reg) tile[LANES].as_mut_ptr(),
            to3 = in(reg) tile[LANES][second..].as_mut_ptr(),
            row = in(reg) size_of_val(&tile[0]),
            options(nostack),
        );
    }
}

/// Multiplies tiles for `rounds` rounds, without memory traffic, and returns the number of
/// multiply-adds.
///
/// # Safety
/// The CPU has AMX and the kernel lets this process use it.
pub(crate) unsafe fn multiply_adds(rounds: u64) -> u64 {
    // SAFETY: the caller guarantees AMX; the tiles are zeroed first, and `tilerelease` frees the
    // tile state.
    unsafe {
        asm!(
            "ldtilecfg [{config}]",
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
            "2:",
            "tdpbssd tmm0, tmm4, tmm6",
            "tdpbssd tmm1, tmm4, tmm7",
            "tdpbssd tmm2, tmm5, tmm6",
            "tdpbssd tmm3, tmm5, tmm7",
            "dec {rounds}",
            "jnz 2b",
            "tilerelease",
            config = in(reg) &raw const CONFIG,
            rounds = inout(reg) rounds => _,
            options(nostack),
        );
    }

    rounds * 4 * 16 * 16 * 64
}
