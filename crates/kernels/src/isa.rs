//! Which instruction set a kernel runs on. Owning an [`Isa`] proves that this CPU has it (memchr's
//! pattern): the constructors are the only way to one.

use crate::KernelError;
use std::fmt;

/// An instruction set that this CPU is known to have.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Isa(Kind);

/// The slowest first; each has what those before it have, up to AVX-VNNI, which AVX-512 does not
/// need.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Scalar,
    /// With F16C and FMA, as every CPU with AVX2 has them.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// `vpdpbusd` on 256 bits.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// `vpdpbusd` on 512 bits.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    /// `tdpbssd` on tiles of 16 × 64 codes, everything else as AVX-512.
    #[cfg(target_arch = "x86_64")]
    Amx,
    /// `sdot` on 128 bits.
    #[cfg(target_arch = "aarch64")]
    NeonDot,
}

/// How wide vectors of floats are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Width {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    V256,
    #[cfg(target_arch = "x86_64")]
    V512,
}

impl Isa {
    /// The fastest this CPU has of those that have run on real hardware. `neon-dot` has only run
    /// under emulation, so it is used where it is asked for by name.
    ///
    /// ```
    /// use llm_int8_kernels::Isa;
    /// assert!(Isa::available().contains(&Isa::detect()));
    /// ```
    pub fn detect() -> Self {
        Self::available()
            .into_iter()
            .rfind(|isa| isa.tried())
            .unwrap_or(Self::scalar())
    }

    /// Whether it has run on real hardware, so that its speed is known.
    fn tried(self) -> bool {
        match self.0 {
            #[cfg(target_arch = "aarch64")]
            Kind::NeonDot => false,
            _ => true,
        }
    }

    /// Plain Rust, which runs everywhere.
    ///
    /// ```
    /// assert_eq!(llm_int8_kernels::Isa::scalar().name(), "scalar");
    /// ```
    pub fn scalar() -> Self {
        Self(Kind::Scalar)
    }

    /// Those this CPU has, the slowest first.
    ///
    /// ```
    /// use llm_int8_kernels::Isa;
    /// assert_eq!(Isa::available()[0], Isa::scalar());
    /// ```
    pub fn available() -> Vec<Self> {
        let mut all = vec![Self::scalar()];
        #[cfg(target_arch = "x86_64")]
        if crate::element::avx2::available() && is_x86_feature_detected!("fma") {
            all.push(Self(Kind::Avx2));
            if is_x86_feature_detected!("avxvnni") {
                all.push(Self(Kind::AvxVnni));
            }
            if crate::simd::avx512_available() {
                all.push(Self(Kind::Avx512Vnni));
                if crate::gemm::amx_available() {
                    all.push(Self(Kind::Amx));
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("dotprod") {
            all.push(Self(Kind::NeonDot));
        }
        all
    }

    /// The one of that name: `scalar`, `avx2`, `avx-vnni`, `avx512-vnni`, `amx` or `neon-dot`.
    ///
    /// ```
    /// use llm_int8_kernels::Isa;
    /// assert_eq!(Isa::by_name("scalar")?, Isa::scalar());
    /// assert!(Isa::by_name("mmx").unwrap_err().to_string().contains("available: scalar"));
    /// # Ok::<(), llm_int8_kernels::KernelError>(())
    /// ```
    ///
    /// # Errors
    /// [`KernelError::UnknownIsa`] where there is none or this CPU lacks it.
    pub fn by_name(name: &str) -> Result<Self, KernelError> {
        let all = Self::available();
        all.iter()
            .copied()
            .find(|isa| isa.name() == name)
            .ok_or_else(|| KernelError::UnknownIsa {
                name: name.to_owned(),
                available: all
                    .iter()
                    .map(|isa| isa.name())
                    .collect::<Vec<_>>()
                    .join(", "),
            })
    }

    /// Its name.
    ///
    /// ```
    /// use llm_int8_kernels::Isa;
    /// assert_eq!(Isa::by_name(Isa::detect().name())?, Isa::detect());
    /// # Ok::<(), llm_int8_kernels::KernelError>(())
    /// ```
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::AvxVnni => "avx-vnni",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Vnni => "avx512-vnni",
            #[cfg(target_arch = "x86_64")]
            Kind::Amx => "amx",
            #[cfg(target_arch = "aarch64")]
            Kind::NeonDot => "neon-dot",
        }
    }

    pub(crate) fn kind(self) -> Kind {
        self.0
    }

    pub(crate) fn width(self) -> Width {
        match self.0 {
            Kind::Scalar => Width::Scalar,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 | Kind::AvxVnni => Width::V256,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Vnni | Kind::Amx => Width::V512,
            // Floats stay plain Rust: NEON is in every AArch64 CPU, so the compiler uses it by
            // itself.
            #[cfg(target_arch = "aarch64")]
            Kind::NeonDot => Width::Scalar,
        }
    }
}

impl fmt::Debug for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Isa({})", self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_and_what_has_not_run_on_hardware_must_be_asked_for() {
        assert!(
            Isa::available()
                .into_iter()
                .all(|isa| Isa::by_name(isa.name()) == Ok(isa))
        );
        assert_ne!(Isa::detect().name(), "neon-dot");
    }
}
