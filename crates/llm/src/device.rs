//! Where a model computes: devices by name, and `device_map="auto"` of transformers.

use crate::error::{LlmError, Result};
use llm_int8_decoder::DecoderError;
use llm_int8_decoder::cuda::Device;
use llm_int8_decoder::{DeviceBudget, Placement};
use std::fmt;
use std::str::FromStr;

/// Bytes that an emulated device says it has.
const EMULATED_BYTES: u64 = 16 << 30;

/// A device by its name: `auto`, `cpu`, `cuda`, `cuda:1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceName {
    /// A GPU where this program can use one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU by its number.
    Cuda(usize),
    /// The emulated device, in tests.
    Emulated(usize),
}

impl FromStr for DeviceName {
    type Err = String;

    /// ```
    /// use llm_int8::DeviceName;
    /// assert_eq!("cuda:1".parse(), Ok(DeviceName::Cuda(1)));
    /// assert!("gpu".parse::<DeviceName>().is_err());
    /// ```
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (kind, number) = match text.split_once(':') {
            Some((kind, number)) => (kind, number.parse().ok()),
            None => (text, Some(0)),
        };
        match (kind, number) {
            ("auto", Some(0)) if kind == text => Ok(Self::Auto),
            ("cpu", Some(0)) if kind == text => Ok(Self::Cpu),
            ("cuda", Some(number)) => Ok(Self::Cuda(number)),
            ("emulated", Some(number)) => Ok(Self::Emulated(number)),
            _ => Err("auto, cpu, cuda or cuda:N was expected".into()),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Emulated(number) => write!(f, "emulated:{number}"),
        }
    }
}

/// What a model may take of a device's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryLimit {
    /// The device, by its number among those given; none: the CPU.
    pub device: Option<usize>,
    /// Bytes.
    pub bytes: u64,
}

/// Where a model goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Devices in the order in which they are filled.
    pub devices: Vec<DeviceName>,
    /// Put whole blocks on all these devices, and what does not fit on the CPU.
    pub map: bool,
    /// How much of each the model may take.
    pub limits: Vec<MemoryLimit>,
    /// Decode by graphs recorded once.
    pub uses_graphs: bool,
    /// Let kernels start while the one before still runs.
    pub overlaps_kernels: bool,
}

impl Default for DeviceConfig {
    fn default() -> Self {
        Self {
            devices: vec![DeviceName::Auto],
            map: false,
            limits: Vec::new(),
            uses_graphs: true,
            overlaps_kernels: true,
        }
    }
}

impl DeviceConfig {
    /// Opens the devices.
    ///
    /// ```
    /// use llm_int8::{DeviceConfig, DeviceName, LoadConfig};
    /// let mut config = LoadConfig::default();
    /// let cpu = DeviceConfig { devices: vec![DeviceName::Cpu], ..DeviceConfig::default() };
    /// config.options.placement = cpu.placement()?;
    /// assert!(config.options.placement.devices.is_empty());
    /// # Ok::<(), llm_int8::LlmError>(())
    /// ```
    ///
    /// # Errors
    /// [`LlmError::Setting`] for settings that contradict each other; [`DecoderError::Cuda`] for a
    /// device that is not there.
    pub fn placement(&self) -> Result<Placement> {
        let names = self.names()?;
        self.check(&names)?;
        let budgets = names
            .iter()
            .enumerate()
            .map(|(number, name)| -> Result<DeviceBudget> {
                let limit = self
                    .limits
                    .iter()
                    .find(|limit| limit.device == Some(number));
                Ok(DeviceBudget {
                    device: open(*name)?,
                    most: limit.map(|limit| limit.bytes),
                })
            });
        let mut budgets = budgets.collect::<Result<Vec<_>>>()?;
        let placement = match (budgets.len(), self.map || self.is_auto()) {
            (0, _) => Placement::cpu(),
            (_, true) => Placement::auto(budgets),
            (_, false) => Placement::on(budgets.remove(0).device),
        };

        let most_on_cpu = self
            .limits
            .iter()
            .find(|limit| limit.device.is_none())
            .map(|limit| limit.bytes);
        let (uses_graphs, overlaps_kernels) = (self.uses_graphs, self.overlaps_kernels);

        Ok(Placement {
            uses_graphs,
            overlaps_kernels,
            most_on_cpu,
            ..placement
        })
    }

    fn is_auto(&self) -> bool {
        self.devices == [DeviceName::Auto]
    }

    /// Devices beside the CPU.
    fn names(&self) -> Result<Vec<DeviceName>> {
        if self.is_auto() {
            let count = Device::cuda_count().unwrap_or_else(|error| {
                log::warn!("{error}; computing on the CPU");
                0
            });
            let used = if self.map { count } else { count.min(1) };
            return Ok((0..used).map(DeviceName::Cuda).collect());
        }

        let alone = [DeviceName::Auto, DeviceName::Cpu];
        match self.devices.iter().find(|name| alone.contains(name)) {
            None => Ok(self.devices.clone()),
            Some(_) if self.devices == [DeviceName::Cpu] => Ok(Vec::new()),
            Some(name) => self.refuse(
                name.to_string(),
                "auto and cpu cannot stand beside other devices",
            ),
        }
    }

    fn check(&self, names: &[DeviceName]) -> Result<()> {
        if self.map && self.devices == [DeviceName::Cpu] {
            return self.refuse(
                "cpu".into(),
                "a device map needs devices: `auto`, or named ones",
            );
        }

        if !self.map && !self.limits.is_empty() {
            return self.refuse_as("a memory limit", "given".into(), "that needs a device map");
        }

        if names.len() > 1 && !self.map {
            return self.refuse(self.text(), "several devices need a device map");
        }

        let beyond = self
            .limits
            .iter()
            .filter_map(|limit| limit.device)
            .find(|number| *number >= names.len());
        match beyond {
            // Without any GPU `auto` is the CPU, whatever limits say of GPUs.
            Some(number) if !(self.is_auto() && names.is_empty()) => Err(LlmError::Setting {
                name: "a memory limit",
                value: format!("for device {number}"),
                expected: "there is no such device among those used",
            }),
            _ => Ok(()),
        }
    }

    fn text(&self) -> String {
        self.devices
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(",")
    }

    fn refuse<T>(&self, value: String, expected: &'static str) -> Result<T> {
        self.refuse_as("the device", value, expected)
    }

    fn refuse_as<T>(&self, name: &'static str, value: String, expected: &'static str) -> Result<T> {
        Err(LlmError::Setting {
            name,
            value,
            expected,
        })
    }
}

fn open(name: DeviceName) -> Result<Device> {
    let device = match name {
        DeviceName::Cuda(number) => Device::cuda(number),
        DeviceName::Emulated(number) => Device::emulated(number, EMULATED_BYTES, 0),
        DeviceName::Auto | DeviceName::Cpu => {
            return Err(LlmError::Setting {
                name: "the device",
                value: name.to_string(),
                expected: "it is no device by itself",
            });
        }
    };
    device.map_err(|error| DecoderError::from(error).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(devices: &[&str], map: bool) -> DeviceConfig {
        let devices = devices.iter().map(|name| name.parse().unwrap()).collect();
        DeviceConfig {
            devices,
            map,
            ..DeviceConfig::default()
        }
    }

    #[test]
    fn names_are_read_and_written() {
        for name in ["auto", "cpu", "cuda:0", "cuda:12"] {
            assert_eq!(name.parse::<DeviceName>().unwrap().to_string(), name);
        }

        assert_eq!("cuda".parse(), Ok(DeviceName::Cuda(0)));
        for wrong in [
            "", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "auto:0", "CUDA",
        ] {
            assert!(wrong.parse::<DeviceName>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let text = |config: &DeviceConfig| config.placement().unwrap_err().to_string();
        assert!(text(&config(&["cpu"], true)).contains("a device map needs devices"));
        assert!(text(&config(&["cuda:0", "cpu"], true)).contains("cannot stand beside"));
        assert!(
            text(&config(&["cuda:0", "cuda:1"], false))
                .contains("several devices need a device map")
        );
        let limits = vec![MemoryLimit {
            device: Some(0),
            bytes: 1,
        }];
        assert!(
            text(&DeviceConfig {
                limits,
                ..config(&["cuda"], false)
            })
            .contains("a memory limit is given; that needs a device map")
        );

        let limits = vec![MemoryLimit {
            device: Some(1),
            bytes: 1,
        }];
        assert!(
            text(&DeviceConfig {
                limits,
                ..config(&["cuda"], true)
            })
            .contains("no such device")
        );
    }

    #[test]
    fn without_a_gpu_auto_is_the_cpu() {
        if Device::cuda_count() == Ok(0) {
            assert!(
                DeviceConfig::default()
                    .placement()
                    .unwrap()
                    .devices
                    .is_empty()
            );

            assert!(
                config(&["auto"], true)
                    .placement()
                    .unwrap()
                    .devices
                    .is_empty()
            );

            assert!(config(&["cuda"], false).placement().is_err());
        }
    }
}
