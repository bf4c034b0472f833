//! Row-major views, the only place where lengths are checked.

use crate::KernelError;

/// A matrix that is read: `rows` × `cols` values, row after row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MatRef<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
}

/// A matrix that is written.
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
    /// [`KernelError::WrongLength`].
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Result<Self, KernelError> {
        check(data.len(), rows, cols)?;
        Ok(Self { data, rows, cols })
    }

    /// A view of what this crate made itself with that length.
    pub(crate) fn trusted(data: &'a [T], rows: usize, cols: usize) -> Self {
        debug_assert!(check(data.len(), rows, cols).is_ok());

        Self { data, rows, cols }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// One row.
    pub fn row(&self, row: usize) -> &'a [T] {
        &self.data[row * self.cols..][..self.cols]
    }

    /// All values, row after row.
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
    /// [`KernelError::WrongLength`].
    pub fn new(data: &'a mut [T], rows: usize, cols: usize) -> Result<Self, KernelError> {
        check(data.len(), rows, cols)?;
        Ok(Self { data, rows, cols })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// One row.
    pub fn row_mut(&mut self, row: usize) -> &mut [T] {
        &mut self.data[row * self.cols..][..self.cols]
    }

    /// All values, row after row.
    pub fn into_data(self) -> &'a mut [T] {
        self.data
    }

    /// Checks that the view has these dimensions.
    pub(crate) fn expect(
        &self,
        rows: usize,
        cols: usize,
        what: [&'static str; 2],
    ) -> Result<(), KernelError> {
        expect(what[0], rows, self.rows)?;
        expect(what[1], cols, self.cols)
    }
}

/// Checks one dimension.
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
