//! The instruction set a kernel runs on. Holding an [`Isa`] proves that this CPU supports it: every
//! constructor checks (the pattern is memchr's).

use crate::KernelError;
use std::fmt;

/// An instruction set that this CPU supports.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Isa(Kind);

/// Slowest first. Each includes all before it, except that AVX-512 VNNI does not imply AVX-VNNI.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Scalar,
    /// AVX2 with F16C and FMA, which every CPU with AVX2 has.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// `vpdpbusd` on 256 bits.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// `vpdpbusd` on 512 bits.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    /// `tdpbssd` on tiles of 16 × 64 codes; everything else runs on AVX-512.
    #[cfg(target_arch = "x86_64")]
    Amx,
    /// NEON, which every AArch64 CPU has.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// `sdot` on 128 bits; everything else runs on NEON.
    #[cfg(target_arch = "aarch64")]
    NeonDot,
}

/// The width of a vector of floats.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Width {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    V256,
    #[cfg(target_arch = "x86_64")]
    V512,
    /// 128 bits.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Isa {
    /// The fastest instruction set of this CPU: the last of [`Isa::available`].
    ///
    /// `neon` and `neon-dot` have run under emulation only (qemu, every test of the kernels): their
    /// speed on a real processor, and their order, are not measured.
    ///
    /// ```
    /// use llm_int8_kernels::Isa;
    /// assert_eq!(Some(&Isa::detect()), Isa::available().last());
    /// ```
    pub fn detect() -> Self {
        Self::available().pop().unwrap_or(Self::scalar())
    }

    /// Plain Rust, which runs everywhere.
    ///
    /// ```
    /// assert_eq!(llm_int8_kernels::Isa::scalar().name(), "scalar");
    /// ```
    pub fn scalar() -> Self {
        Self(Kind::Scalar)
    }

    /// All that this CPU supports, slowest first.
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
        {
            all.push(Self(Kind::Neon));
            if std::arch::is_aarch64_feature_detected!("dotprod") {
                all.push(Self(Kind::NeonDot));
            }
        }
        all
    }

    /// The instruction set of a name: `scalar`, `avx2`, `avx-vnni`, `avx512-vnni`, `amx`, `neon` or
    /// `neon-dot`.
    ///
    /// ```
    /// use llm_int8_kernels::Isa;
    /// assert_eq!(Isa::by_name("scalar")?, Isa::scalar());
    /// assert!(Isa::by_name("mmx").unwrap_err().to_string().contains("available: scalar"));
    /// # Ok::<(), llm_int8_kernels::KernelError>(())
    /// ```
    ///
    /// # Errors
    /// [`KernelError::UnknownIsa`] if there is none of that name, or this CPU lacks it.
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

    /// The name that [`Isa::by_name`] takes.
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
            Kind::Neon => "neon",
            #[cfg(target_arch = "aarch64")]
            Kind::NeonDot => "neon-dot",
        }
    }

    pub(crate) fn kind(self) -> Kind {
        self.0
    }

    /// Whether registers have 512 bits.
    pub(crate) fn has_wide_registers(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.width() == Width::V512;
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    pub(crate) fn width(self) -> Width {
        match self.0 {
            Kind::Scalar => Width::Scalar,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 | Kind::AvxVnni => Width::V256,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Vnni | Kind::Amx => Width::V512,
            #[cfg(target_arch = "aarch64")]
            Kind::Neon | Kind::NeonDot => Width::Neon,
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
    fn names_round_trip() {
        assert!(
            Isa::available()
                .into_iter()
                .all(|isa| Isa::by_name(isa.name()) == Ok(isa))
        );
    }

    #[cfg(target_arch = "aarch64")]
    #[test]
    fn aarch64_has_neon_by_default() {
        assert!(Isa::detect().width() == Width::Neon);
        assert_eq!(Isa::available()[1].name(), "neon");
    }
}
