//! The classes and functions that a pickle of `torch.save` may name. None of them is called; each
//! name stands for the value it would return. The list is that of torch's own `weights_only` loader
//! (`torch/_weights_only_unpickler.py`); all other names are rejected.

use safetensors::Dtype;

/// The dtype of a storage's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scalar {
    /// A dtype that safetensors has too.
    Known(Dtype),
    /// Another dtype, by torch's name. Such a tensor can be skipped, but not read.
    Other(&'static str),
    /// No dtype: an untyped storage, whose length is in bytes.
    Bytes,
}

/// What a name in a pickle stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    /// `OrderedDict`, `Counter`: a dictionary.
    Dictionary,
    /// `torch.Size`: a tuple.
    Size,
    /// `torch.nn.Parameter`: the tensor it wraps.
    Parameter,
    /// A class of tensors.
    TensorClass,
    /// The class of a storage.
    Storage(Scalar),
    /// A dtype.
    Dtype(Scalar),
    /// `_rebuild_tensor`, `_rebuild_tensor_v2`.
    RebuildTensor,
    /// `_rebuild_tensor_v3`, which takes the dtype as an argument.
    RebuildTensorV3,
    /// `_rebuild_parameter`, `_rebuild_parameter_with_state`.
    RebuildParameter,
    /// `_rebuild_from_type_v2`: a tensor with attributes.
    RebuildFromType,
    /// Makes a tensor of an unsupported kind.
    RebuildOther(&'static str),
    /// Makes a value that neither is nor holds a tensor.
    Value(&'static str),
}

/// Looks up a name in a module; `None` if torch would reject it too.
pub(super) fn find(module: &str, name: &str) -> Option<Global> {
    Some(match (module, name) {
        ("collections", "OrderedDict" | "Counter") => Global::Dictionary,
        ("torch", "Size") => Global::Size,
        ("torch", "Tensor") => Global::TensorClass,
        ("torch.nn.parameter", "Parameter") => Global::Parameter,
        ("torch._utils", name) => rebuild(name)?,
        ("torch._tensor", "_rebuild_from_type_v2") => Global::RebuildFromType,
        ("torch", "device") => Global::Value("device"),
        ("torch.serialization", "_get_layout") => Global::Value("layout"),
        ("_codecs", "encode") => Global::Value("bytes"),
        ("builtins" | "__builtin__", "set") => Global::Value("set"),
        ("builtins" | "__builtin__", "bytearray") => Global::Value("bytearray"),
        ("builtins" | "__builtin__", "complex") => Global::Value("complex number"),
        ("torch.storage" | "torch", "UntypedStorage") => Global::Storage(Scalar::Bytes),
        ("torch" | "torch.cuda", name) if name.ends_with("Storage") => {
            Global::Storage(storage(name)?)
        }
        ("torch", name) if name.starts_with("per_tensor_") || name.starts_with("per_channel_") => {
            Global::Value("quantisation scheme")
        }
        ("torch", name) => Global::Dtype(dtype(name)?),
        _ => return None,
    })
}

fn rebuild(name: &str) -> Option<Global> {
    Some(match name {
        "_rebuild_tensor" | "_rebuild_tensor_v2" => Global::RebuildTensor,
        "_rebuild_tensor_v3" => Global::RebuildTensorV3,
        "_rebuild_parameter" | "_rebuild_parameter_with_state" => Global::RebuildParameter,
        "_rebuild_qtensor" => Global::RebuildOther("a quantized tensor of torch"),
        "_rebuild_sparse_tensor" => Global::RebuildOther("a sparse tensor"),
        "_rebuild_nested_tensor" => Global::RebuildOther("a nested tensor"),
        "_rebuild_meta_tensor_no_storage" => {
            Global::RebuildOther("a tensor without data (device meta)")
        }
        "_rebuild_wrapper_subclass" => Global::RebuildOther("a tensor subclass without data"),
        "_rebuild_device_tensor_from_numpy" | "_rebuild_device_tensor_from_cpu_tensor" => {
            Global::RebuildOther("a tensor of another device")
        }
        _ => return None,
    })
}

fn storage(name: &str) -> Option<Scalar> {
    Some(match name.strip_suffix("Storage")? {
        "Double" => Scalar::Known(Dtype::F64),
        "Float" => Scalar::Known(Dtype::F32),
        "Half" => Scalar::Known(Dtype::F16),
        "BFloat16" => Scalar::Known(Dtype::BF16),
        "Long" => Scalar::Known(Dtype::I64),
        "Int" => Scalar::Known(Dtype::I32),
        "Short" => Scalar::Known(Dtype::I16),
        "Char" => Scalar::Known(Dtype::I8),
        "Byte" => Scalar::Known(Dtype::U8),
        "Bool" => Scalar::Known(Dtype::BOOL),
        "ComplexFloat" => Scalar::Known(Dtype::C64),
        "ComplexDouble" => Scalar::Other("complex128"),
        "QInt8" => Scalar::Other("qint8"),
        "QUInt8" => Scalar::Other("quint8"),
        "QInt32" => Scalar::Other("qint32"),
        "QUInt4x2" => Scalar::Other("quint4x2"),
        "QUInt2x4" => Scalar::Other("quint2x4"),
        _ => return None,
    })
}

fn dtype(name: &str) -> Option<Scalar> {
    Some(match name {
        "float64" => Scalar::Known(Dtype::F64),
        "float32" => Scalar::Known(Dtype::F32),
        "float16" => Scalar::Known(Dtype::F16),
        "bfloat16" => Scalar::Known(Dtype::BF16),
        "float8_e4m3fn" => Scalar::Known(Dtype::F8_E4M3),
        "float8_e5m2" => Scalar::Known(Dtype::F8_E5M2),
        "float8_e4m3fnuz" => Scalar::Known(Dtype::F8_E4M3FNUZ),
        "float8_e5m2fnuz" => Scalar::Known(Dtype::F8_E5M2FNUZ),
        "float8_e8m0fnu" => Scalar::Known(Dtype::F8_E8M0),
        "int64" => Scalar::Known(Dtype::I64),
        "int32" => Scalar::Known(Dtype::I32),
        "int16" => Scalar::Known(Dtype::I16),
        "int8" => Scalar::Known(Dtype::I8),
        "uint8" => Scalar::Known(Dtype::U8),
        "uint16" => Scalar::Known(Dtype::U16),
        "uint32" => Scalar::Known(Dtype::U32),
        "uint64" => Scalar::Known(Dtype::U64),
        "bool" => Scalar::Known(Dtype::BOOL),
        "complex64" => Scalar::Known(Dtype::C64),
        "complex128" => Scalar::Other("complex128"),
        "complex32" => Scalar::Other("complex32"),
        "float4_e2m1fn_x2" => Scalar::Other("float4_e2m1fn_x2"),
        "qint8" => Scalar::Other("qint8"),
        "quint8" => Scalar::Other("quint8"),
        "qint32" => Scalar::Other("qint32"),
        "quint4x2" => Scalar::Other("quint4x2"),
        "quint2x4" => Scalar::Other("quint2x4"),
        "bits8" | "bits16" | "bits1x8" | "bits2x4" | "bits4x2" => Scalar::Other("bits"),
        "int1" | "int2" | "int3" | "int4" | "int5" | "int6" | "int7" => {
            Scalar::Other("an int of less than 8 bits")
        }
        "uint1" | "uint2" | "uint3" | "uint4" | "uint5" | "uint6" | "uint7" => {
            Scalar::Other("a uint of less than 8 bits")
        }
        _ => return None,
    })
}
