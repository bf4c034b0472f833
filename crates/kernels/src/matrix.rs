//! Row-major matrix views. A view's length is checked once, when it is made.

use crate::KernelError;

/// A read-only row-major matrix of `rows` × `cols` values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MatRef<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
}

/// A mutable row-major matrix of `rows` × `cols` values.
#[derive(Debug, PartialEq)]
pub struct MatMut<'a, T> {
    data: &'a mut [T],
    rows: usize,
    cols: usize,
}

fn check(found: usize, rows: usize, cols: usize) -> Result<(), KernelError> {
    if rows.checked_mul(cols) == Some(found) {
        return Ok(());
    }

    Err(KernelError::WrongLength { rows, cols, found })
}

impl<'a, T> MatRef<'a, T> {
    /// A view of `data` as `rows` × `cols`.
    ///
    /// ```
    /// use llm_int8_kernels::MatRef;
    /// assert_eq!(MatRef::new(&[1, 2, 3, 4, 5, 6], 2, 3)?.row(1), [4, 5, 6]);
    /// assert!(MatRef::new(&[1, 2, 3], 2, 2).is_err());
    /// # Ok::<(), llm_int8_kernels::KernelError>(())
    /// ```
    ///
    /// # Errors
    /// [`KernelError::WrongLength`] unless `data` holds `rows · cols` values.
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Result<Self, KernelError> {
        check(data.len(), rows, cols)?;
        Ok(Self { data, rows, cols })
    }

    /// A view of memory that this crate allocated with the right length; checked in debug builds
    /// only.
    pub(crate) fn trusted(data: &'a [T], rows: usize, cols: usize) -> Self {
        debug_assert!(check(data.len(), rows, cols).is_ok());

        Self { data, rows, cols }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// One row, of `cols` values.
    pub fn row(&self, row: usize) -> &'a [T] {
        &self.data[row * self.cols..][..self.cols]
    }

    /// All values, row-major.
    pub fn data(&self) -> &'a [T] {
        self.data
    }
}

impl<'a, T> MatMut<'a, T> {
    /// A view of `data` as `rows` × `cols`.
    ///
    /// ```
    /// use llm_int8_kernels::MatMut;
    /// let mut data = [0; 4];
    /// MatMut::new(&mut data, 2, 2)?.row_mut(1)[0] = 7;
    /// assert_eq!(data, [0, 0, 7, 0]);
    /// # Ok::<(), llm_int8_kernels::KernelError>(())
    /// ```
    ///
    /// # Errors
    /// [`KernelError::WrongLength`] unless `data` holds `rows · cols` values.
    pub fn new(data: &'a mut [T], rows: usize, cols: usize) -> Result<Self, KernelError> {
        check(data.len(), rows, cols)?;
        Ok(Self { data, rows, cols })
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// One row, of `cols` values.
    pub fn row_mut(&mut self, row: usize) -> &mut [T] {
        &mut self.data[row * self.cols..][..self.cols]
    }

    /// All values, row-major.
    pub fn into_data(self) -> &'a mut [T] {
        self.data
    }

    /// Checks both dimensions; the two names are those of rows and columns in the error.
    pub(crate) fn expect(
        &self,
        rows: usize,
        cols: usize,
        [rows_name, cols_name]: [&'static str; 2],
    ) -> Result<(), KernelError> {
        expect(rows_name, rows, self.rows)?;
        expect(cols_name, cols, self.cols)
    }
}

/// Checks one dimension; `what` names it in the error.
pub(crate) fn expect(what: &'static str, expected: usize, found: usize) -> Result<(), KernelError> {
    if expected == found {
        Ok(())
    } else {
        Err(KernelError::WrongDimension {
            what,
            expected,
            found,
        })
    }
}
