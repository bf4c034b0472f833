//! Sizes in bytes, such as `5GB`, and memory limits, such as `0=20GiB`.

use llm_int8::MemoryLimit;

/// Parses `0=20GiB`, `cuda:0=20GiB` or `cpu=64GiB`.
pub(super) fn memory_limit(text: &str) -> Result<MemoryLimit, String> {
    let (device, bytes) = text
        .split_once('=')
        .ok_or("expected a device and a size, as in 0=20GiB")?;
    let bytes = size(bytes)?;
    if device == "cpu" {
        return Ok(MemoryLimit {
            device: None,
            bytes,
        });
    }

    let number = device.strip_prefix("cuda:").unwrap_or(device).parse();
    let number =
        number.map_err(|_| format!("`{device}` is not a device; expected a number or cpu"))?;
    Ok(MemoryLimit {
        device: Some(number),
        bytes,
    })
}

/// Parses a number of bytes as transformers does: powers of 1000 (`GB`) or of 1024 (`GiB`).
pub(super) fn size(text: &str) -> Result<u64, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let unit: u64 = match text[digits..].to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KIB" => 1 << 10,
        "MIB" => 1 << 20,
        "GIB" => 1 << 30,
        other => {
            return Err(format!(
                "`{other}` is not a unit; expected B, KB, MB, GB, KiB, MiB or GiB"
            ));
        }
    };

    let number: u64 = text[..digits]
        .parse()
        .map_err(|_| "expected a whole number and a unit, as in 5GB")?;
    match number.checked_mul(unit) {
        Some(size) if size > 0 => Ok(size),
        _ => Err("expected a size of at least 1 byte".into()),
    }
}

/// Parses a size, or 0 for nothing at all.
pub(super) fn size_or_none(text: &str) -> Result<u64, String> {
    if text == "0" { Ok(0) } else { size(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_parsed_as_in_transformers() {
        assert_eq!(size("5GB"), Ok(5_000_000_000));
        assert_eq!(size("2GiB"), Ok(2 << 30));
        assert_eq!(size("200mb"), Ok(200_000_000));
        assert_eq!(size("17"), Ok(17));
        for wrong in [
            "",
            "GB",
            "5XB",
            "-1GB",
            "0",
            "99999999999999999999GB",
            "9999999999999GB",
            "1.5GB",
        ] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn memory_limits_are_parsed() {
        assert_eq!(
            memory_limit("1=2GiB"),
            Ok(MemoryLimit {
                device: Some(1),
                bytes: 2 << 30
            })
        );

        assert_eq!(
            memory_limit("cuda:0=5MB"),
            Ok(MemoryLimit {
                device: Some(0),
                bytes: 5_000_000
            })
        );

        assert_eq!(
            memory_limit("cpu=1"),
            Ok(MemoryLimit {
                device: None,
                bytes: 1
            })
        );

        for wrong in ["", "5GB", "x=5GB", "0=", "0=5XB", "-1=5GB"] {
            assert!(memory_limit(wrong).is_err(), "{wrong}");
        }
    }
}
