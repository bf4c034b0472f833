//! What depends on the driver itself. Runs on a GPU, or over the emulated `libcuda.so.1` of
//! `scripts/test_cuda_driver.sh`.

use super::*;
use crate::Device;
use crate::driver::ring::SMALL_SLOTS;

fn driver() -> Option<CudaDriver> {
    let is_tested = !crate::testing::gpus().is_empty();
    is_tested.then(|| CudaDriver::new(0).unwrap())
}

#[test]
fn a_forbidden_call_invalidates_a_capture_but_not_the_next_one() {
    let Some(driver) = driver() else { return };
    let address = driver.allocate(64).unwrap();
    driver.write(address, &[7; 64]).unwrap();

    for forbidden in [
        &|| driver.allocate(64).map(drop) as Result<()>,
        &|| driver.free(address),
        &|| driver.synchronize(),
        &|| driver.read(address, &mut [0; 64]),
    ] as [&dyn Fn() -> Result<()>; 4]
    {
        driver.begin_recording().unwrap();
        assert!(forbidden().is_err());
        assert!(driver.end_recording().is_err());
    }

    driver.begin_recording().unwrap();
    driver.zero(address, 32).unwrap();
    driver.copy(address + 48, address, 8).unwrap();
    let graph = driver.end_recording().unwrap();
    driver.replay(&graph).unwrap();

    let mut bytes = [0; 64];
    driver.read(address, &mut bytes).unwrap();
    assert_eq!(
        (bytes[31], bytes[32], bytes[47], bytes[48], bytes[56]),
        (0, 7, 7, 0, 7)
    );
    driver.free(address).unwrap();
}

#[test]
fn a_slot_is_not_refilled_while_a_copy_reads_it() {
    let Some(driver) = driver() else { return };
    let count = 3 * SMALL_SLOTS.count;
    let address = driver.allocate(count * 16).unwrap();

    for i in 0..count {
        driver
            .write(address + 16 * i as u64, &[i as u8; 16])
            .unwrap();
    }

    let mut bytes = vec![0; count * 16];
    driver.read(address, &mut bytes).unwrap();
    assert!(
        bytes
            .chunks(16)
            .enumerate()
            .all(|(i, slot)| slot.iter().all(|byte| *byte == i as u8))
    );
    driver.free(address).unwrap();
}

#[test]
fn a_stream_of_another_library_is_one_device_and_its_memory_can_be_viewed() {
    if driver().is_none() {
        return;
    }
    let open = || {
        let per_thread = std::ptr::without_provenance_mut(2);
        #[expect(unsafe_code, reason = "a stream of the driver")]
        // SAFETY: every thread has the stream `CU_STREAM_PER_THREAD`; only this one uses it here.
        unsafe { Device::on_stream(0, per_thread) }.unwrap()
    };
    let device = open();
    assert!(device.is(&open()));
    assert!(!device.is(&Device::cuda(0).unwrap()));

    let buffer = device.upload(&[1f32, 2.0, 3.0]).unwrap();
    #[expect(unsafe_code, reason = "an address")]
    // SAFETY: the last two values of `buffer`, which nothing else accesses meanwhile.
    let view = unsafe { device.view::<f32>(buffer.address() + 4, 2) };
    let copy = device.allocate::<f32>(2).unwrap();
    copy.all().copy_from(&view).unwrap();
    drop(buffer); // freed after the copy, in the order of the stream
    assert_eq!(copy.to_vec().unwrap(), [2.0, 3.0]);
}
