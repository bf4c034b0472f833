//! Which instruction set a kernel runs on. Owning an [`Isa`] proves that this CPU has it (memchr's
//! pattern): the constructors are the only way to one.

use crate::KernelError;
use std::fmt;

/// An instruction set that this CPU is known to have.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Isa(Kind);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

impl Isa {
    /// The fastest this CPU has.
    ///
    /// ```
    /// use llm_int8_kernels::Isa;
    /// assert!(Isa::available().contains(&Isa::detect()));
    /// ```
    pub fn detect() -> Self {
        // std caches the CPU's answer; this is a load and a branch.
        #[cfg(target_arch = "x86_64")]
        if crate::element::avx2::available() && is_x86_feature_detected!("fma") {
            return Self(Kind::Avx2);
        }
        Self(Kind::Scalar)
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
        if Self::detect() != Self::scalar() {
            all.push(Self::detect());
        }
        all
    }

    /// The one of that name: `scalar` or `avx2`.
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
        all.iter().copied().find(|isa| isa.name() == name).ok_or_else(|| KernelError::UnknownIsa {
            name: name.to_owned(),
            available: all.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", "),
        })
    }

    /// Its name.
    ///
    /// ```
    /// assert!(["scalar", "avx2"].contains(&llm_int8_kernels::Isa::detect().name()));
    /// ```
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
        }
    }

    pub(crate) fn kind(self) -> Kind {
        self.0
    }
}

impl fmt::Debug for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Isa({})", self.name())
    }
}
