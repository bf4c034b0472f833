//! Which devices a model runs on: devices by name, and transformers' `device_map="auto"`.

use crate::error::{LlmError, Result};
use llm_int8_decoder::DecoderError;
use llm_int8_decoder::cuda::Device;
use llm_int8_decoder::{DeviceBudget, Placement};
use std::fmt;
use std::str::FromStr;

/// Memory that an emulated device reports, in bytes.
const EMULATED_BYTES: u64 = 16 << 30;

/// A device name: `auto`, `cpu`, `cuda` (the first GPU), `cuda:1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceName {
    /// The first usable GPU, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU with this index.
    Cuda(usize),
    /// An emulated device, for tests.
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
            _ => Err("expected auto, cpu, cuda or cuda:N".into()),
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

/// How much of a device's memory a model may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryLimit {
    /// The index of a GPU among the devices in use; `None` is the CPU.
    pub device: Option<usize>,
    /// Bytes.
    pub bytes: u64,
}

/// The devices a model runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Devices, in the order in which they are filled.
    pub devices: Vec<DeviceName>,
    /// Spread whole blocks over all these devices, and put what does not fit on the CPU.
    pub map: bool,
    /// How much memory the model may use, per device.
    pub limits: Vec<MemoryLimit>,
    /// Decode with CUDA graphs that are recorded once.
    pub uses_graphs: bool,
    /// Let a kernel start while the previous one still runs (programmatic dependent launch).
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
    /// device that does not exist or cannot be opened.
    pub fn placement(&self) -> Result<Placement> {
        let names = self.names()?;
        self.check(&names)?;

        let mut budgets = Vec::new();
        for (index, name) in names.iter().enumerate() {
            budgets.push(DeviceBudget {
                device: open(*name)?,
                most: self.limit(Some(index)),
            });
        }

        let placement = match (budgets.len(), self.map || self.is_auto()) {
            (0, _) => Placement::cpu(),
            (_, true) => Placement::auto(budgets),
            (_, false) => Placement::on(budgets.remove(0).device),
        };

        Ok(Placement {
            uses_graphs: self.uses_graphs,
            overlaps_kernels: self.overlaps_kernels,
            most_on_cpu: self.limit(None),
            ..placement
        })
    }

    /// The limit for a device, or for the CPU (`None`), in bytes.
    fn limit(&self, device: Option<usize>) -> Option<u64> {
        self.limits
            .iter()
            .find(|limit| limit.device == device)
            .map(|limit| limit.bytes)
    }

    fn is_auto(&self) -> bool {
        self.devices == [DeviceName::Auto]
    }

    /// The devices other than the CPU.
    fn names(&self) -> Result<Vec<DeviceName>> {
        if self.is_auto() {
            let count = Device::cuda_count().unwrap_or_else(|error| {
                log::warn!("{error}; running on the CPU");
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
                "auto and cpu cannot be combined with other devices",
            ),
        }
    }

    fn check(&self, names: &[DeviceName]) -> Result<()> {
        if self.map && self.devices == [DeviceName::Cpu] {
            return self.refuse(
                "cpu".into(),
                "a device map needs devices: `auto`, or GPUs by name",
            );
        }

        if !self.map && !self.limits.is_empty() {
            return self.refuse_as("a memory limit", "given".into(), "it needs a device map");
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
            // Without a GPU `auto` is the CPU, and limits for GPUs are ignored.
            Some(number) if !(self.is_auto() && names.is_empty()) => Err(LlmError::Setting {
                name: "a memory limit",
                value: format!("for device {number}"),
                expected: "no such device is used",
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
                expected: "it does not name a single device",
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
    fn names_parse_and_print() {
        for name in ["auto", "cpu", "cuda:0", "cuda:12"] {
            assert_eq!(name.parse::<DeviceName>().unwrap().to_string(), name);
        }

        assert_eq!("cuda".parse(), Ok(DeviceName::Cuda(0)));
        for invalid in [
            "", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "auto:0", "CUDA",
        ] {
            assert!(invalid.parse::<DeviceName>().is_err(), "{invalid}");
        }
    }

    #[test]
    fn contradictory_settings_are_refused() {
        let text = |config: &DeviceConfig| config.placement().unwrap_err().to_string();
        assert!(text(&config(&["cpu"], true)).contains("a device map needs devices"));
        assert!(text(&config(&["cuda:0", "cpu"], true)).contains("cannot be combined with"));
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
            .contains("a memory limit is given; it needs a device map")
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
            .contains("no such device is used")
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
