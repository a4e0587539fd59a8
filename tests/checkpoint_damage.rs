//! Checkpoints that are damaged, or lie: each must be a typed error that names what is wrong. `checkpoint_fuzz.rs` damages them at
//! random.
#![cfg(feature = "checkpoint")]

#[path = "common/damage.rs"]
mod damage;

use std::path::Path;

use damage::{CONFIG, Folder, INDEX, folder, join, object, split};
use paf_cuda::Error;
use paf_cuda::checkpoint::{Checkpoint, CheckpointError};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

fn write(files: &Folder) -> TempDir {
    let folder = TempDir::new().unwrap();
    damage::write_to(folder.path(), files);
    folder
}

/// Opens what is in the folder and converts it all.
fn open(path: &Path) -> Result<(), Error> {
    damage::convert(&Checkpoint::open(path)?);
    Ok(())
}

fn damaged(files: &Folder) -> CheckpointError {
    match open(write(files).path()) {
        Err(Error::Checkpoint(error)) => error,
        other => panic!("{other:?}"),
    }
}

/// `case` with one field of its configuration set.
fn with_field(case: &str, name: &str, value: Value) -> CheckpointError {
    let mut files = folder(case);
    let mut config = object(&files[CONFIG]);
    config.insert(name.into(), value);
    files.insert(CONFIG.into(), serde_json::to_vec(&config).unwrap());
    damaged(&files)
}

/// `case`, of one weight file, with its header edited.
fn with_header(case: &str, edit: impl FnOnce(&mut Map<String, Value>)) -> CheckpointError {
    let mut files = folder(case);
    let (mut header, data) = split(&files["model.safetensors"]);
    edit(&mut header);
    files.insert("model.safetensors".into(), join(&header, &data));
    damaged(&files)
}

#[test]
fn errors_name_field_value_and_what_would_do() {
    for (case, field, value, part) in [
        ("bert", "hidden_size", json!(null), "hidden_size is missing, expected a number from 1 to 1048576"),
        ("bert", "hidden_size", json!(25), "num_attention_heads is 3, expected a divisor of 25"),
        ("bert", "layer_norm_eps", json!(0.0), "layer_norm_eps is 0.0, expected a positive number"),
        ("bert", "hidden_act", json!("tanh"), "hidden_act is \"tanh\", expected gelu"),
        ("bert", "position_embedding_type", json!("relative_key"), "expected \"absolute\""),
        ("bert", "is_decoder", json!(true), "is_decoder is true, expected false"),
        ("phi", "qk_layernorm", json!(true), "qk_layernorm is true"),
        ("phi", "max_position_embeddings", json!("many"), "max_position_embeddings is \"many\""),
        ("cohere", "use_qk_norm", json!(true), "use_qk_norm is true, expected false: nothing else is implemented"),
        ("cohere", "logit_scale", json!(0), "logit_scale is 0, expected a positive number"),
        ("cohere", "rope_parameters", json!(null), "rope_theta is missing, expected a positive number"),
        ("cohere", "rope_parameters", json!({"rope_type": "yarn", "rope_theta": 1e4}), "rope_type default"),
        ("cohere", "rope_parameters", json!({"rope_theta": -1.0}), "a positive number as rope_theta"),
        ("cohere", "num_key_value_heads", json!(3), "num_key_value_heads is 3, expected a divisor"),
        ("phi", "rope_scaling", json!({"type": "linear", "factor": 2.0}), "rope_type default"),
        ("gptj", "rotary_dim", json!(7), "rotary_dim is 7, expected an even number"),
        ("falcon", "alibi", json!(true), "alibi is true"),
        ("falcon", "parallel_attn", json!(false), "parallel_attn is false"),
        ("falcon_new", "num_kv_heads", json!(3), "num_key_value_heads is 3, expected a divisor"),
    ] {
        let error = with_field(case, field, value);
        assert!(matches!(error, CheckpointError::Field { .. }), "{error:?}");
        assert!(error.to_string().contains(part), "{error}");
    }
    for model_type in [json!("llama"), json!(7), json!(null)] {
        let error = with_field("bert", "model_type", model_type);
        assert!(matches!(error, CheckpointError::UnknownModelType { .. }), "{error:?}");
        assert!(error.to_string().contains("bert, roberta, gpt_neox, gptj, phi, falcon, cohere"), "{error}");
    }
}

#[test]
fn errors_name_file_and_tensor() {
    let query = "bert.encoder.layer.1.attention.self.query.weight";
    let error = with_header("bert", |header| {
        let entry = header.remove(query).unwrap();
        header.insert("bert.encoder.layer.2.output.dense.weight".into(), entry);
    });
    assert!(matches!(&error, CheckpointError::MissingTensor { tensor, .. } if tensor == query), "{error:?}");
    let error = with_header("gptj", |header| {
        let entry = header.remove("lm_head.weight").unwrap();
        header.remove("lm_head.bias");
        header.insert("score.weight".into(), entry);
    });
    // The head's bias left a hole in the file.
    assert!(matches!(error, CheckpointError::Malformed { format: "safetensors", .. }), "{error:?}");
    let error = with_header("bert", |header| header[query]["shape"] = json!([576]));
    let expected = "is [576], expected [24, 24]";
    assert!(matches!(error, CheckpointError::Tensor { .. }) && error.to_string().contains(expected), "{error}");
    let error = with_header("bert", |header| header[query]["dtype"] = json!("I32"));
    assert!(error.to_string().contains("is I32, expected F32, F16 or BF16"), "{error}");
    let mut longer = folder("phi_base");
    let (mut header, data) = split(&longer["model.safetensors"]);
    let end = data.len();
    header.insert("score.weight".into(), json!({"dtype": "U8", "shape": [3], "data_offsets": [end, end + 3]}));
    longer.insert("model.safetensors".into(), join(&header, &[data, vec![0; 3]].concat()));
    let error = damaged(&longer);
    assert!(matches!(&error, CheckpointError::ExtraTensor { tensor, .. } if tensor == "score.weight"), "{error:?}");
}

#[test]
fn files_must_be_there_and_be_files() {
    for name in ["config.json", "model.safetensors"] {
        let mut files = folder("phi");
        files.remove(name);
        let error = damaged(&files);
        assert!(matches!(error, CheckpointError::Unreadable { .. }), "{error:?}");
        let folder = write(&files);
        std::fs::create_dir(folder.path().join(name)).unwrap();
        assert!(open(folder.path()).unwrap_err().to_string().contains("not a regular file"));
        files.insert(name.into(), Vec::new());
        assert!(matches!(damaged(&files), CheckpointError::Malformed { .. }));
    }
}

#[test]
fn an_index_names_files_beside_it_and_tensors_in_them() {
    let with_index = |edit: &dyn Fn(&mut Map<String, Value>)| {
        let mut files = folder("roberta");
        let mut index = object(&files[INDEX]);
        edit(index["weight_map"].as_object_mut().unwrap());
        files.insert(INDEX.into(), serde_json::to_vec(&index).unwrap());
        damaged(&files)
    };
    let bias = "lm_head.bias";
    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    for outside in ["../model.safetensors", "/tmp/model.safetensors", "a/b.safetensors", "..\\b.safetensors", "passwd"]
    {
        let error = with_index(&|map| map[bias] = json!(outside));
        assert!(matches!(error, CheckpointError::Index { .. }), "{error:?}");
        assert!(error.to_string().contains("beside the index"), "{error}");
    }
    let error = with_index(&|map| map[bias] = json!(shards[0]));
    assert!(error.to_string().contains("tensor \"lm_head.bias\" is not in \"model-00001"), "{error}");
    let error = with_index(&|map| drop(map.remove(bias)));
    assert!(error.to_string().contains("is not listed"), "{error}");
    let error = with_index(&|map| map[bias] = json!("model-00003-of-00002.safetensors"));
    assert!(matches!(error, CheckpointError::Unreadable { .. }), "{error:?}");
    // The same tensors in two files.
    let mut files = folder("roberta");
    files.insert(shards[0].into(), files[shards[1]].clone());
    let error = damaged(&files);
    assert!(error.to_string().contains("is in"), "{error}");
}
