//! Matmuls with every tile and with split K.

use crate::linear_oracle::{Case, FUNCTIONS, tolerance};
use crate::{assert_near, devices, few_devices, noise};
use half::{bf16, f16};
use llm_int8_cuda::Device;
use llm_int8_cuda::ops::Float;
use llm_int8_cuda::plan::{Gemm, Tile};
use llm_int8_kernels::{Element, OutlierRule};

/// Activations with outliers in `count` columns: in every other row of each, none in the last row.
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

fn every_tile_matches_the_reference<T: Float + Element>(devices: Vec<Device>) {
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
                // The emulated device has few multiprocessors, so little memory for sums.
                if splits > 1 && tile.count(rows, n) > 2 {
                    continue;
                }
                let mut case = Case::<T>::new([rows, n, cols], 23);
                with_outlier_columns(&mut case, outliers);
                for rule in [
                    OutlierRule::batch(6.0),
                    OutlierRule::row(6.0),
                    OutlierRule::row_rms(2.5),
                ] {
                    let expected = case.expected(rule);
                    let what = format!(
                        "{tile:?}, {splits}, {rows} x {n} x {cols}, {outliers}, {rule:?}, {device:?}"
                    );
                    let gemm = Gemm { tile, splits };
                    assert_near(
                        &case.by_gemm(&device, rule, gemm, None),
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
fn every_tile_and_split_matches_the_reference_in_f32() {
    every_tile_matches_the_reference::<f32>(devices());
}

#[test]
fn every_tile_and_split_matches_the_reference_in_f16_and_bf16() {
    every_tile_matches_the_reference::<f16>(few_devices());
    every_tile_matches_the_reference::<bf16>(few_devices());
}

#[test]
fn epilogues_of_matmuls_apply_every_activation_and_the_residual() {
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
            let rule = OutlierRule::row(6.0);
            let plain = case.by_gemm(&device, rule, Gemm { tile, splits }, None);
            for function in FUNCTIONS {
                let found = case.by_gemm(&device, rule, Gemm { tile, splits }, Some(function));
                let expected = case.with_epilogue(&plain, function);
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
