//! Sizes in bytes, as `5GB`, and limits of memory, as `0=20GiB`.

use llm_int8::MemoryLimit;

/// `0=20GiB`, `cuda:0=20GiB` or `cpu=64GiB`.
pub(super) fn memory_limit(text: &str) -> Result<MemoryLimit, String> {
    let (device, bytes) = text
        .split_once('=')
        .ok_or("a device and a size were expected, as 0=20GiB")?;
    let bytes = size(bytes)?;
    if device == "cpu" {
        return Ok(MemoryLimit {
            device: None,
            bytes,
        });
    }

    let number = device.strip_prefix("cuda:").unwrap_or(device).parse();
    let number =
        number.map_err(|_| format!("`{device}` is no device; a number or cpu was expected"))?;
    Ok(MemoryLimit {
        device: Some(number),
        bytes,
    })
}

/// A number of bytes as transformers writes it: powers of 1000 (`GB`) or of 1024 (`GiB`).
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
                "`{other}` is no unit; B, KB, MB, GB, KiB, MiB and GiB are known"
            ));
        }
    };

    let number: u64 = text[..digits]
        .parse()
        .map_err(|_| "a whole number and a unit were expected, as 5GB")?;
    match number.checked_mul(unit) {
        Some(size) if size > 0 => Ok(size),
        _ => Err("a size from 1 byte up was expected".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_transformers_reads_them() {
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
    fn limits_of_memory_are_read() {
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
