//! Memory, graphs, and what is refused.

use crate::{devices, few_devices};
use llm_int8_cuda::ops::{Combined, Source, combine, copy_rows, softcap};
use llm_int8_cuda::{CudaError, Device, testing};

#[test]
fn memory_is_counted_and_given_back() {
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
fn what_does_not_fit_is_said_so() {
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
fn a_graph_does_again_what_was_recorded() {
    for device in devices() {
        let x = device.upload(&[1.0f32, 2.0, 3.0]).unwrap();
        let y = device.zeros::<f32>(3).unwrap();
        let graph = device
            .record(|| {
                combine(
                    Combined::Sum(2.0),
                    (y.all(), 3),
                    (x.all(), 3),
                    y.all(),
                    [1, 3],
                )?;
                x.all().copy_from(&y.all())
            })
            .unwrap();
        assert_eq!(y.to_vec().unwrap(), [0.0; 3], "recording does nothing yet");
        graph.launch().unwrap();
        assert_eq!(x.to_vec().unwrap(), [2.0, 4.0, 6.0]);
        graph.launch().unwrap();
        // y = y + 2 x, and x is y by then.
        assert_eq!(y.to_vec().unwrap(), [6.0, 12.0, 18.0]);
    }
}

#[test]
fn nothing_may_wait_or_allocate_in_a_graph() {
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

        // The recordings that ended so leave the device as it was.
        let graph = device.record(|| softcap(x.all(), 2.0, None)).unwrap();
        graph.launch().unwrap();
        assert_eq!(x.to_vec().unwrap(), [2.0, 4.0, 6.0]);
    }
}

#[test]
fn lengths_and_devices_are_checked_before_a_launch() {
    let [a, b] = [0, 1].map(|ordinal| testing::emulated(ordinal, 1 << 20, 0));
    let (Some(a), Some(b)) = (a, b) else { return };
    let (x, other) = (a.zeros::<f32>(6).unwrap(), b.zeros::<f32>(6).unwrap());
    let sum = |up, shape| combine(Combined::Product, (x.all(), 3), (up, 3), x.all(), shape);
    assert!(matches!(
        sum(other.all(), [2, 3]),
        Err(CudaError::WrongDevice {
            what: "its partner",
            ..
        })
    ));
    let error = sum(x.all(), [3, 3]).unwrap_err();
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
fn without_a_gpu_the_reason_is_said() {
    match Device::cuda(7) {
        Ok(_) => {}
        Err(error) => {
            let text = error.to_string();
            let known = ["compute on the CPU", "this machine has"];
            assert!(known.iter().any(|words| text.contains(words)), "{text}");
        }
    }
}

#[test]
fn what_one_thread_does_without_overlap_leaves_the_others_as_they_are() {
    for device in few_devices() {
        let before = device.overlaps_kernels();
        device.set_overlap(true);
        let (inside, outside) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                device.without_overlap(|| {
                    inside.wait();
                    assert!(!device.overlaps_kernels());
                    outside.wait();
                });
                assert!(device.overlaps_kernels());
            });
            // This one begins while the other is within, and ends after it has looked.
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
fn small_copies_one_after_the_other_each_arrive() {
    for device in few_devices() {
        // More copies than there are slots for them, none waited for before the last.
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
fn what_a_kernel_did_wrong_shows_at_every_later_call() {
    // A GPU's context would be lost to the other tests.
    let Some(device) = testing::emulated(0, 1 << 20, 0) else {
        return;
    };
    let x = device.upload(&[1.0f32; 64]).unwrap();
    let wide = device.allocate::<u8>(4096).unwrap();
    // 16-byte words from an address that is no multiple of 16.
    copy_rows(
        (wide.part(8..).unwrap(), 64),
        (wide.part(2048..).unwrap(), 64),
        [2, 64],
    )
    .unwrap();
    for _ in 0..2 {
        let error = x.to_vec().unwrap_err().to_string();
        assert!(error.contains("not aligned"), "{error}");
    }
    assert!(device.synchronize().is_err());
}
