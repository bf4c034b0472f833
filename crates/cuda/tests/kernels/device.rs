//! Memory, graphs, and errors.

use crate::{devices, few_devices};
use llm_int8_cuda::ops::{Combined, RowShape, Source, Strided, combine, copy_rows, softcap};
use llm_int8_cuda::{CudaError, Device, View, testing};

/// Rows of three values.
fn triples(values: View<'_, f32>) -> Strided<'_, f32> {
    Strided { values, stride: 3 }
}

#[test]
fn memory_is_counted_and_freed() {
    for device in devices() {
        let before = device.memory().unwrap();
        let buffer = device.upload(&[1.0f32; 1000]).unwrap();
        assert_eq!(device.memory().unwrap().allocated, before.allocated + 4000);
        assert_eq!(buffer.to_vec().unwrap(), [1.0; 1000]);

        let part = buffer.part(10..20).unwrap();
        part.fill_with_zeros().unwrap();
        let values = buffer.to_vec().unwrap();
        assert_eq!(
            (values[9], values[10], values[19], values[20]),
            (1.0, 0.0, 0.0, 1.0)
        );

        drop(buffer);
        let after = device.memory().unwrap();
        assert_eq!(after.allocated, before.allocated);
        assert!(after.peak >= 4000);

        assert!(matches!(
            device.upload(&[0u8; 4]).unwrap().part(2..5),
            Err(CudaError::TooShort { .. })
        ));
    }
}

#[test]
fn large_copies_arrive_whole() {
    for device in few_devices() {
        let values: Vec<u32> = (0..10_000_000).collect();
        assert!(device.upload(&values).unwrap().to_vec().unwrap() == values);
    }
}

#[test]
fn out_of_memory_errors_say_how_much_is_missing() {
    let Some(device) = testing::emulated(3, 1000, 0) else {
        return;
    };
    let error = device.allocate::<f32>(300).unwrap_err();
    assert!(
        matches!(
            error,
            CudaError::OutOfMemory {
                requested: 1200,
                free: 1000,
                ..
            }
        ),
        "{error:?}"
    );

    let text = error.to_string();
    assert!(
        text.contains("emulated:3") && text.contains("a device map"),
        "{text}"
    );
    assert!(device.allocate::<u64>(usize::MAX / 4).is_err());
}

#[test]
fn a_graph_replays_what_was_recorded() {
    for device in devices() {
        let x = device.upload(&[1.0f32, 2.0, 3.0]).unwrap();
        let y = device.zeros::<f32>(3).unwrap();
        let graph = device
            .record(|| {
                let shape = RowShape { rows: 1, width: 3 };
                combine(
                    Combined::Sum(2.0),
                    triples(y.all()),
                    triples(x.all()),
                    y.all(),
                    shape,
                )?;
                x.all().copy_from(&y.all())
            })
            .unwrap();
        assert_eq!(y.to_vec().unwrap(), [0.0; 3], "recording runs nothing");

        graph.launch().unwrap();
        assert_eq!(x.to_vec().unwrap(), [2.0, 4.0, 6.0]);

        // y = y + 2 x, where the first launch copied y to x.
        graph.launch().unwrap();
        assert_eq!(y.to_vec().unwrap(), [6.0, 12.0, 18.0]);
    }
}

#[test]
fn recording_refuses_to_allocate_copy_to_the_host_or_wait() {
    for device in few_devices() {
        let x = device.upload(&[1.0f32, 2.0, 3.0]).unwrap();
        let refuses = |steps: &dyn Fn() -> llm_int8_cuda::Result<()>| {
            let error = device.record(steps).unwrap_err().to_string();
            assert!(error.contains("not while launches are recorded"), "{error}");
        };
        refuses(&|| device.zeros::<f32>(3).map(drop));
        refuses(&|| x.to_vec().map(drop));
        refuses(&|| x.all().write(&[1.0]));
        refuses(&|| device.synchronize());

        // A failed recording leaves the device usable.
        let graph = device.record(|| softcap(x.all(), 2.0, None)).unwrap();
        graph.launch().unwrap();
        assert_eq!(x.to_vec().unwrap(), [2.0, 4.0, 6.0]);
    }
}

#[test]
fn lengths_and_devices_are_checked_before_a_launch() {
    let [a, b] = [0, 1].map(|ordinal| testing::emulated(ordinal, 1 << 20, 0));
    let (Some(a), Some(b)) = (a, b) else { return };
    let x = a.zeros::<f32>(6).unwrap();
    let other = b.zeros::<f32>(6).unwrap();
    let multiply = |y, rows| {
        let shape = RowShape { rows, width: 3 };
        combine(
            Combined::Product,
            triples(x.all()),
            triples(y),
            x.all(),
            shape,
        )
    };

    assert!(matches!(
        multiply(other.all(), 2),
        Err(CudaError::WrongDevice { what: "y", .. })
    ));
    let error = multiply(x.all(), 3).unwrap_err();
    assert!(
        matches!(
            error,
            CudaError::TooShort {
                what: "x",
                found: 6,
                needed: 9,
                ..
            }
        ),
        "{error:?}"
    );

    assert!(Source::plain(x.all(), 1, 6).rows == 1);
    assert!(matches!(
        other.all().copy_from(&x.all()),
        Err(CudaError::WrongDevice { .. })
    ));
}

#[test]
fn an_error_says_why_there_is_no_gpu() {
    match Device::cuda(7) {
        Ok(_) => {}
        Err(error) => {
            let text = error.to_string();
            let expected = ["compute on the CPU", "this machine has"];
            assert!(expected.iter().any(|words| text.contains(words)), "{text}");
        }
    }
}

#[test]
fn without_overlap_does_not_affect_other_threads() {
    for device in few_devices() {
        let before = device.overlaps_kernels();
        device.set_overlap(true);
        let inside = std::sync::Barrier::new(2);
        let outside = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                device.without_overlap(|| {
                    inside.wait();
                    assert!(!device.overlaps_kernels());
                    outside.wait();
                });
                assert!(device.overlaps_kernels());
            });
            // This thread enters `without_overlap` while the other is inside of it, and leaves
            // after the other's assertion.
            inside.wait();
            assert!(device.overlaps_kernels());
            device.without_overlap(|| {
                assert!(!device.overlaps_kernels());
                outside.wait();
            });
        });
        assert!(device.overlaps_kernels());
        device.set_overlap(before);
    }
}

#[test]
fn more_small_copies_than_staging_slots_all_arrive() {
    for device in few_devices() {
        // No copy is waited for before the last is queued.
        let buffers: Vec<_> = (0..300)
            .map(|i| device.upload(&[i as u32; 7]).unwrap())
            .collect();
        for (i, buffer) in buffers.iter().enumerate() {
            assert_eq!(buffer.to_vec().unwrap(), [i as u32; 7]);
        }

        let sizes = [4095, 4096, 4097, 100_000];
        let copies: Vec<_> = sizes
            .map(|size| (0..size).map(|i| (i % 251) as u8).collect::<Vec<u8>>())
            .into_iter()
            .map(|values| (device.upload(&values).unwrap(), values))
            .collect();
        for (buffer, values) in copies {
            assert!(buffer.to_vec().unwrap() == values);
        }
    }
}

#[test]
fn a_kernels_error_is_returned_by_every_later_call() {
    // On a GPU, it would break the context for the other tests.
    let Some(device) = testing::emulated(0, 1 << 20, 0) else {
        return;
    };
    let x = device.upload(&[1.0f32; 64]).unwrap();
    let wide = device.allocate::<u8>(4096).unwrap();

    // 16-byte loads from an address that is not a multiple of 16.
    let rows_from = |first: usize| Strided {
        values: wide.part(first..).unwrap(),
        stride: 64,
    };
    let shape = RowShape { rows: 2, width: 64 };
    copy_rows(rows_from(8), rows_from(2048), shape).unwrap();

    for _ in 0..2 {
        let error = x.to_vec().unwrap_err().to_string();
        assert!(error.contains("not aligned"), "{error}");
    }
    assert!(device.synchronize().is_err());
}
