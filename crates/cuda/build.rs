//! Compiles the kernels: with nvcc for GPUs (features `cuda` and `linked`), with a C++ compiler for the emulated
//! device (feature `emulation`).

use std::error::Error;
use std::path::PathBuf;
use std::process::Command;

/// The compute capabilities to compile machine code for; that of 8.0 also runs on 8.6. For the last
/// one PTX is embedded too, which the drivers of later GPUs compile. But never for 9.0: it is
/// compiled for `sm_90a`, with `wgmma`, which no other capability has, so its PTX would run nowhere
/// else.
const CAPABILITIES: &str = "75,80,89,90,100,120";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rustc-check-cfg=cfg(emulated)");
    println!("cargo::rustc-check-cfg=cfg(wgmma)");
    println!("cargo::rerun-if-changed=kernels");
    println!("cargo::rerun-if-changed=emulation");

    if std::env::var_os("CARGO_FEATURE_DRIVER").is_some() {
        compile_for_gpus()?;
    }
    #[cfg(feature = "emulation")]
    compile_for_cpu();
    Ok(())
}

fn compile_for_gpus() -> Result<(), Box<dyn Error>> {
    for name in [
        "NVCC",
        "NVCC_APPEND_FLAGS",
        "CUDA_HOME",
        "CUDA_PATH",
        "LLM_INT8_CUDA_CAPABILITIES",
    ] {
        println!("cargo::rerun-if-env-changed={name}");
    }

    let nvcc = find_nvcc().ok_or(
        "the feature `cuda` needs nvcc of CUDA 12.8 or newer, which was not found in $NVCC, $PATH, $CUDA_HOME/bin or \
         $CUDA_PATH/bin; scripts/cuda_toolchain.sh installs it",
    )?;
    let capabilities =
        std::env::var("LLM_INT8_CUDA_CAPABILITIES").unwrap_or_else(|_| CAPABILITIES.to_owned());
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("kernels.fatbin");

    let mut command = Command::new(&nvcc);
    command.args([
        "-std=c++17",
        "-O3",
        "-fatbin",
        "--threads",
        "0",
        "-Xcompiler",
        "-Wall",
    ]);
    for code in targets(&capabilities) {
        command.args(["-gencode", &code]);
    }
    let status = command
        .arg("kernels/kernels.cu")
        .arg("-o")
        .arg(&out)
        .status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{} failed: {status}", nvcc.display()).into()),
        Err(error) => Err(format!("cannot run {}: {error}", nvcc.display()).into()),
    }
}

/// The arguments of nvcc's `-gencode` for capabilities such as `80,90`. Sets `cfg(wgmma)` if 9.0 is
/// among them.
fn targets(capabilities: &str) -> Vec<String> {
    let capabilities: Vec<&str> = capabilities.split(',').map(str::trim).collect();
    let last = capabilities.len() - 1;

    let target = |(i, capability): (usize, &&str)| {
        if *capability == "90" {
            println!("cargo::rustc-cfg=wgmma");
            "arch=compute_90a,code=sm_90a".to_owned()
        } else if i == last {
            format!("arch=compute_{capability},code=[sm_{capability},compute_{capability}]")
        } else {
            format!("arch=compute_{capability},code=sm_{capability}")
        }
    };
    capabilities.iter().enumerate().map(target).collect()
}

fn find_nvcc() -> Option<PathBuf> {
    if let Some(nvcc) = std::env::var_os("NVCC") {
        return Some(nvcc.into());
    }

    let path = std::env::var_os("PATH").unwrap_or_default();
    let homes = ["CUDA_HOME", "CUDA_PATH"]
        .into_iter()
        .filter_map(std::env::var_os);
    let folders =
        std::env::split_paths(&path).chain(homes.map(|home| PathBuf::from(home).join("bin")));
    folders
        .map(|folder| folder.join("nvcc"))
        .find(|nvcc| nvcc.is_file())
}

/// Without a C++ compiler there is no emulated device, and its tests report that they were skipped.
#[cfg(feature = "emulation")]
fn compile_for_cpu() {
    let compiled = cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .define("LLM_INT8_EMULATION", None)
        .include("emulation")
        // Multiplications and additions must round separately, as the kernels' `_rn` functions do.
        .flag("-ffp-contract=off")
        .flag("-fno-strict-aliasing")
        .flag("-Wno-unknown-pragmas")
        .file("emulation/emulation.cc")
        .try_compile("llm_int8_emulation");
    match compiled {
        Ok(()) => println!("cargo::rustc-cfg=emulated"),
        Err(error) => println!("cargo::warning=no emulated device: {error}"),
    }
}
