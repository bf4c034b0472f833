//! Every way to divide a matmul of many rows gives the same.

use crate::linear_oracle::{Case, FUNCTIONS, scope, tolerance};
use crate::{assert_near, devices, few_devices, noise};
use half::{bf16, f16};
use llm_int8_cuda::Device;
use llm_int8_cuda::ops::Float;
use llm_int8_cuda::plan::{Gemm, Tile};
use llm_int8_kernels::Element;

/// Values with outliers in `count` columns, every other row in each, and none in the last row.
fn with_outlier_columns<T: Float + Element>(case: &mut Case<T>, count: usize) {
    case.x = noise(case.rows * case.cols, 7)
        .iter()
        .map(|x| T::of(x * 3.0))
        .collect();
    for column in 0..count {
        for row in (column % 2..case.rows - 1).step_by(2) {
            case.x[row * case.cols + column * 3] = T::of(7.0 + column as f32);
        }
    }
}

fn divides_a_matmul<T: Float + Element>(devices: Vec<Device>) {
    for device in devices {
        for (tile, splits) in [
            (Tile::Small, 1),
            (Tile::Small, 5),
            (Tile::Large, 1),
            (Tile::Large, 3),
            (Tile::HopperFlat, 2),
            (Tile::Hopper, 2),
            (Tile::HopperDeep, 3),
        ] {
            if Tile::HOPPER.contains(&tile) && !device.has_wgmma() {
                continue;
            }
            for ([rows, n, cols], outliers) in [
                ([70, 77, 130], 0),
                ([17, 33, 599], 1),
                ([65, 65, 129], 5),
                ([66, 12, 300], 17),
                ([40, 66, 523], 40),
                ([130, 150, 300], 3),
            ] {
                // What the emulated device has memory for.
                if splits > 1 && tile.count(rows, n) > 2 {
                    continue;
                }
                let mut case = Case::<T>::new([rows, n, cols], 23);
                with_outlier_columns(&mut case, outliers);
                for by_row in [false, true] {
                    let expected = case.expected(6.0, scope(by_row));
                    let what = format!(
                        "{tile:?}, {splits}, {rows} x {n} x {cols}, {outliers}, {by_row}, {device:?}"
                    );
                    let division = Gemm { tile, splits };
                    assert_near(
                        &case.by_division(&device, by_row, division, None),
                        &expected,
                        tolerance::<T>(),
                        &what,
                    );
                }
            }
        }
    }
}

#[test]
fn every_division_of_a_matmul_gives_the_same() {
    divides_a_matmul::<f32>(devices());
}

#[test]
fn every_division_of_a_matmul_gives_the_same_for_f16_and_bf16() {
    divides_a_matmul::<f16>(few_devices());
    divides_a_matmul::<bf16>(few_devices());
}

#[test]
fn every_function_and_the_residual_follow_a_matmul() {
    for device in few_devices() {
        for (tile, splits) in [
            (Tile::Small, 1),
            (Tile::Small, 2),
            (Tile::Large, 1),
            (Tile::HopperFlat, 2),
            (Tile::HopperTall, 1),
        ] {
            if Tile::HOPPER.contains(&tile) && !device.has_wgmma() {
                continue;
            }
            let case = Case::<f32>::new([20, 70, 40], 29);
            let plain = case.by_division(&device, true, Gemm { tile, splits }, None);
            for function in FUNCTIONS {
                let found = case.by_division(&device, true, Gemm { tile, splits }, Some(function));
                let expected = case.followed(&plain, function);
                assert_near(
                    &found,
                    &expected,
                    1e-6,
                    &format!("{tile:?}, {splits}, {function:?}"),
                );
            }
        }
    }
}
