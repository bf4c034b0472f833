//! Int8 weights, and the sums of their rows.

#[cfg(target_arch = "x86_64")]
use super::vnni;
#[cfg(target_arch = "x86_64")]
use crate::isa::Kind;
use crate::matrix::expect;
use crate::{Isa, KernelError, MatRef, team};

/// Rows whose sums a task computes.
const TASK_ROWS: usize = 64;

/// Int8 weights `[N, K]` with the absmax of each row. Quantisation writes codes in -127..=127 (see
/// [`check_codes`](crate::check_codes)); a -128 is computed with exactly all the same.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Int8WeightRef<'a> {
    pub(super) codes: MatRef<'a, i8>,
    pub(super) absmax: &'a [f32],
    pub(super) row_sums: Option<&'a [i32]>,
}

impl<'a> Int8WeightRef<'a> {
    /// Codes `[N, K]` and absmax `[N]`.
    ///
    /// ```
    /// use llm_int8_kernels::{Int8WeightRef, MatRef};
    /// assert!(Int8WeightRef::new(MatRef::new(&[1i8, 2], 1, 2)?, &[1.0]).is_ok());
    /// assert!(Int8WeightRef::new(MatRef::new(&[1i8, 2], 1, 2)?, &[]).is_err());
    /// # Ok::<(), llm_int8_kernels::KernelError>(())
    /// ```
    ///
    /// # Errors
    /// [`KernelError::WrongDimension`] if `absmax` does not have N values.
    pub fn new(codes: MatRef<'a, i8>, absmax: &'a [f32]) -> Result<Self, KernelError> {
        expect("length of the weight's absmax", codes.rows(), absmax.len())?;
        Ok(Self {
            codes,
            absmax,
            row_sums: None,
        })
    }

    /// The same weight with its [`row_sums`] `[N]`, so that matmuls need not compute them. Wrong
    /// sums give wrong results.
    ///
    /// ```
    /// use llm_int8_kernels::{Int8WeightRef, Isa, MatRef, row_sums};
    /// let codes = MatRef::new(&[1i8, 2], 1, 2)?;
    /// let sums = row_sums(Isa::detect(), codes);
    /// assert!(Int8WeightRef::new(codes, &[1.0])?.with_row_sums(&sums).is_ok());
    /// # Ok::<(), llm_int8_kernels::KernelError>(())
    /// ```
    ///
    /// # Errors
    /// [`KernelError::WrongDimension`] if there are not N sums.
    pub fn with_row_sums(self, sums: &'a [i32]) -> Result<Self, KernelError> {
        expect("number of row sums", self.codes.rows(), sums.len())?;
        Ok(Self {
            row_sums: Some(sums),
            ..self
        })
    }
}

/// Whether a matmul of this many rows of activations is faster if the weight
/// [has its row sums](Int8WeightRef::with_row_sums): VNNI multiplies unsigned by signed codes, so
/// activations are offset by 128, and that offset times the sum of the weights is taken off again.
///
/// ```
/// use llm_int8_kernels::{Isa, uses_row_sums};
/// assert!(!uses_row_sums(Isa::detect(), 1));
/// ```
pub fn uses_row_sums(isa: Isa, rows: usize) -> bool {
    rows > super::rows::MAX_ROWS
        && match isa.kind() {
            #[cfg(target_arch = "x86_64")]
            Kind::AvxVnni | Kind::Avx512Vnni => true,
            _ => false,
        }
}

/// The sum of each row of codes `[N, K]`; wraps where K is beyond what matmuls accept.
///
/// ```
/// use llm_int8_kernels::{Isa, MatRef, row_sums};
/// assert_eq!(row_sums(Isa::detect(), MatRef::new(&[1i8, 2, -5, 3], 2, 2)?), [3, -2]);
/// # Ok::<(), llm_int8_kernels::KernelError>(())
/// ```
pub fn row_sums(isa: Isa, codes: MatRef<'_, i8>) -> Vec<i32> {
    let mut sums = vec![0; codes.rows()];
    team::for_each_chunk(&mut sums, TASK_ROWS, |_: &mut (), task, sums| {
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = row_sum(isa, codes.row(task * TASK_ROWS + i));
        }
    });
    sums
}

/// The sum of some codes.
pub(super) fn row_sum(isa: Isa, codes: &[i8]) -> i32 {
    match isa.kind() {
        #[cfg(target_arch = "x86_64")]
        Kind::AvxVnni => vnni::v256::row_sum(isa, codes),
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512Vnni | Kind::Amx => vnni::v512::row_sum(isa, codes),
        _ => codes
            .iter()
            .fold(0i32, |sum, code| sum.wrapping_add(i32::from(*code))),
    }
}
