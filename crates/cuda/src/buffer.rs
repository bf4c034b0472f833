//! Device memory: owned buffers and views of them.

use crate::device::Device;
use crate::error::{CudaError, Result};
use bytemuck::Pod;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};

/// Values in device memory, freed on drop. The contents of a new buffer are unspecified.
pub struct Buffer<T> {
    device: Device,
    address: u64,
    length: usize,
    values: PhantomData<T>,
}

/// A borrowed range of a buffer, or of memory that another library allocated ([`Device::view`]).
#[derive(Debug)]
pub struct View<'a, T> {
    device: &'a Device,
    address: u64,
    length: usize,
    values: PhantomData<&'a Buffer<T>>,
}

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for View<'_, T> {}

impl<T: Pod> Buffer<T> {
    pub(crate) fn new(device: Device, length: usize) -> Result<Self> {
        let bytes = length
            .checked_mul(size_of::<T>())
            .ok_or_else(|| CudaError::Shape {
                kernel: "allocating",
                reason: format!("{length} values exceed the address space"),
            })?;

        let address = device.call_now("allocating", |driver| driver.allocate(bytes))?;
        device.count_allocation(bytes as u64);

        Ok(Self {
            device,
            address,
            length,
            values: PhantomData,
        })
    }

    /// A view of the whole buffer.
    pub fn all(&self) -> View<'_, T> {
        View {
            device: &self.device,
            address: self.address,
            length: self.length,
            values: PhantomData,
        }
    }

    /// A view of the values in `range`.
    ///
    /// # Errors
    /// [`CudaError::TooShort`] if the range reaches past the end.
    pub fn part(&self, range: impl RangeBounds<usize>) -> Result<View<'_, T>> {
        self.all().part(range)
    }

    /// Copies the values to the host. Waits for the device.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn to_vec(&self) -> Result<Vec<T>> {
        let mut values = vec![T::zeroed(); self.length];
        self.all().read(&mut values)?;
        Ok(values)
    }
}

impl<T> Buffer<T> {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether the buffer is empty.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The device that holds it.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Its device address, for structs that kernels read from device memory.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        (self.length * size_of::<T>()) as u64
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        self.device.count_release(self.bytes());

        // A drop cannot return an error. A broken context fails the next call as well.
        let address = self.address;
        if let Err(error) = self
            .device
            .call_now("freeing", |driver| driver.free(address))
        {
            log::error!("{error}");
        }
    }
}

impl<T> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer")
            .field("device", &self.device)
            .field("length", &self.length)
            .finish()
    }
}

impl<'a, T: Pod> View<'a, T> {
    /// A view of memory that is not a [`Buffer`]'s; [`Device::view`] says what must hold.
    pub(crate) fn new(device: &'a Device, address: u64, length: usize) -> Self {
        Self {
            device,
            address,
            length,
            values: PhantomData,
        }
    }

    /// A view of the values in `range`.
    ///
    /// # Errors
    /// [`CudaError::TooShort`] if the range reaches past the end.
    pub fn part(&self, range: impl RangeBounds<usize>) -> Result<View<'a, T>> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => self.length,
        };

        if start > end || end > self.length {
            return Err(CudaError::TooShort {
                kernel: "a part",
                what: "the buffer",
                found: self.length,
                needed: end.max(start),
            });
        }

        Ok(View {
            address: self.address + (start * size_of::<T>()) as u64,
            length: end - start,
            ..*self
        })
    }

    /// Copies `values` from the host to the beginning of the view. `values` may be reused as soon
    /// as this returns.
    ///
    /// # Errors
    /// [`CudaError::TooShort`], [`CudaError::Driver`].
    pub fn write(&self, values: &[T]) -> Result<()> {
        self.check("writing", values.len())?;

        let address = self.address();
        let bytes = bytemuck::cast_slice(values);
        self.device().call_now("copying from the host", |driver| {
            driver.write(address, bytes)
        })
    }

    /// Fills `values` on the host from the beginning of the view. Waits for the device.
    ///
    /// # Errors
    /// [`CudaError::TooShort`], [`CudaError::Driver`].
    pub fn read(&self, values: &mut [T]) -> Result<()> {
        self.check("reading", values.len())?;

        let address = self.address();
        let bytes = bytemuck::cast_slice_mut(values);
        self.device()
            .call_now("copying to the host", |driver| driver.read(address, bytes))
    }

    /// Copies all of `other`, a view on the same device, to the beginning of this view.
    ///
    /// # Errors
    /// [`CudaError::TooShort`], [`CudaError::WrongDevice`], [`CudaError::Driver`].
    pub fn copy_from(&self, other: &View<'_, T>) -> Result<()> {
        self.check("copying", other.length)?;
        if !self.device().is(other.device()) {
            let device = self.device().name().to_owned();
            return Err(CudaError::WrongDevice {
                kernel: "copying",
                what: "the source",
                device,
            });
        }

        let to = self.address();
        let from = other.address();
        let bytes = other.length * size_of::<T>();
        self.device().call(|driver| driver.copy(to, from, bytes))
    }

    /// Fills the view with zeros.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn fill_with_zeros(&self) -> Result<()> {
        let address = self.address();
        let bytes = self.length * size_of::<T>();
        if bytes == 0 {
            return Ok(());
        }

        self.device().call(|driver| driver.zero(address, bytes))
    }

    fn check(&self, kernel: &'static str, needed: usize) -> Result<()> {
        if needed <= self.length {
            return Ok(());
        }
        Err(CudaError::TooShort {
            kernel,
            what: "the buffer",
            found: self.length,
            needed,
        })
    }
}

impl<'a> View<'a, u8> {
    /// The same bytes as values of type `T`.
    ///
    /// # Errors
    /// [`CudaError::Shape`] if they are misaligned for `T` or not a whole number of values.
    pub fn cast<T: Pod>(&self) -> Result<View<'a, T>> {
        let size = size_of::<T>();

        // The buffer's own address is aligned for every type; the view may start anywhere in it.
        if !self.address.is_multiple_of(size as u64) || !self.length.is_multiple_of(size) {
            let reason = format!("{} bytes are not whole values of {size}", self.length);
            return Err(CudaError::Shape {
                kernel: "a part",
                reason,
            });
        }

        Ok(View {
            device: self.device,
            address: self.address,
            length: self.length / size,
            values: PhantomData,
        })
    }
}

impl<T> View<'_, T> {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether the view is empty.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The device that holds it.
    pub fn device(&self) -> &Device {
        self.device
    }

    /// Its device address.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }
}
