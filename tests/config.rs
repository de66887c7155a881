//! The configuration: examples and manifests that ship, the JSON schema, and the reference.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::{Arg, Command, CommandFactory};
use kube_bastion::cli::Cli;
use kube_bastion::config::{Config, schema};
use serde_json::Value;

const SCHEMA: &str = "config/bastionconfiguration.schema.json";
const REFERENCE: &str = "docs/reference.md";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn examples() -> Vec<PathBuf> {
    let mut paths: Vec<_> = std::fs::read_dir(root().join("config"))
        .expect("config/ is a directory")
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "yaml"))
        .collect();
    paths.push(root().join("deploy/base/config.yaml"));
    paths
}

/// Compares a generated file with the committed one, or writes it if the variable is set.
fn assert_current(file: &str, generated: &str, variable: &str, target: &str) {
    let path = root().join(file);
    if std::env::var_os(variable).is_some() {
        std::fs::write(&path, generated).expect("the tree is writable");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == generated,
        "{file} is not current; run `make {target}` and commit it"
    );
}

#[test]
fn examples_are_valid() {
    let examples = examples();
    assert!(examples.len() >= 4, "{examples:?}");
    for path in examples {
        let config = Config::load(&path).unwrap_or_else(|error| panic!("{error}"));
        config
            .validate()
            .unwrap_or_else(|error| panic!("{path:?}: {error}"));
    }
}

#[test]
fn schema_is_current() {
    assert_current(SCHEMA, &schema(), "UPDATE_SCHEMA", "schema");
}

#[test]
fn reference_is_current() {
    assert_current(REFERENCE, &reference(), "UPDATE_REFERENCE", "reference");
}

#[test]
fn every_field_has_a_description() {
    let schema = Schema::new();
    let mut bare = Vec::new();
    for field in schema.fields() {
        if schema.description(&field.schema).is_empty() {
            bare.push(field.path);
        }
    }
    assert!(bare.is_empty(), "{bare:?}");
}

#[test]
fn every_flag_has_a_help_text() {
    let root = Cli::command();
    for command in root.get_subcommands() {
        for flag in command.get_arguments() {
            assert!(flag.get_help().is_some(), "{flag:?}");
        }
    }
}

/// Field of the configuration with its full path.
struct Field {
    path: String,
    schema: Value,
    required: bool,
}

/// The generated JSON schema.
struct Schema(Value);

impl Schema {
    fn new() -> Self {
        Self(serde_json::from_str(&schema()).expect("the schema is JSON"))
    }

    /// Follows the reference of a property, if it has one.
    fn definition<'a>(&'a self, property: &'a Value) -> &'a Value {
        match property["$ref"].as_str() {
            Some(reference) => self
                .0
                .pointer(reference.trim_start_matches('#'))
                .expect("references resolve"),
            None => property,
        }
    }

    /// Returns all fields, each section followed by its fields.
    fn fields(&self) -> Vec<Field> {
        let mut fields = Vec::new();
        self.add_fields("", &self.0, &mut fields);
        fields
    }

    fn add_fields(&self, prefix: &str, section: &Value, fields: &mut Vec<Field>) {
        let required = section["required"].as_array();
        let is_required = |name: &str| required.is_some_and(|names| names.contains(&name.into()));
        for (name, property) in section["properties"].as_object().into_iter().flatten() {
            let path = format!("{prefix}{name}");
            fields.push(Field {
                path: path.clone(),
                schema: property.clone(),
                required: is_required(name),
            });
            self.add_fields(&format!("{path}."), self.definition(property), fields);
        }
    }

    fn is_section(&self, property: &Value) -> bool {
        self.definition(property)["properties"].is_object()
    }

    /// Returns the description of a property, or that of its type, and those of its values.
    fn description(&self, property: &Value) -> String {
        let definition = self.definition(property);
        let description = property["description"]
            .as_str()
            .or_else(|| definition["description"].as_str());
        let mut text = description.unwrap_or_default().to_owned();
        for value in definition["oneOf"].as_array().into_iter().flatten() {
            let (value, meaning) = (&value["const"], value["description"].as_str());
            let meaning = meaning.expect("each value of oneOf has a description");
            text += &format!(" `{}`: {meaning}", self::text(value));
        }
        text.replace('\n', " ")
    }

    /// Returns the type of a property, with its values if they are few.
    fn type_of(&self, property: &Value) -> String {
        if let Some(name) = property["x-type"].as_str() {
            return name.to_owned();
        }
        let definition = self.definition(property);
        let listed = |values: &mut dyn Iterator<Item = &Value>| {
            let values: Vec<_> = values.map(|value| format!("`{}`", text(value))).collect();
            values.join(", ")
        };
        if let Some(values) = definition["enum"].as_array() {
            return listed(&mut values.iter());
        }
        if let Some(values) = definition["oneOf"].as_array() {
            return listed(&mut values.iter().map(|value| &value["const"]));
        }
        let name = match &definition["type"] {
            Value::Array(types) => types
                .iter()
                .filter_map(Value::as_str)
                .find(|name| *name != "null")
                .unwrap_or_default(),
            name => name.as_str().unwrap_or_default(),
        };
        match name {
            "array" => format!("list of {}", self.type_of(&definition["items"])),
            name => name.to_owned(),
        }
    }
}

/// Formats a value as in YAML.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(text).collect();
            format!("[{}]", items.join(", "))
        }
        other => other.to_string(),
    }
}

fn default_of(field: &Field) -> String {
    match &field.schema["default"] {
        Value::Null if field.required => "required".to_owned(),
        Value::Null => "unset".to_owned(),
        Value::String(text) if text.is_empty() => "empty".to_owned(),
        default => format!("`{}`", text(default)),
    }
}

const INTRODUCTION: &str = "\
# Reference

Generated from the configuration types and the command line; `make reference` updates it.

Precedence: flag, environment variable, `--config` file, default. Durations are whole numbers with
the units `h`, `m`, `s` and `ms` (`1m30s`), sizes whole numbers, alone or with `k`, `M`, `G`, `Ki`,
`Mi` or `Gi` (`32Mi`).

- [Configuration file](#configuration-file)
- [Flags and environment variables](#flags-and-environment-variables)

## Configuration file

YAML, with the JSON schema `config/bastionconfiguration.schema.json`. Unknown fields and duplicate
keys are rejected. `kube-bastion check --config FILE` validates a file.
";

/// Generates `docs/reference.md`.
fn reference() -> String {
    let mut page = INTRODUCTION.to_owned();
    write_fields(&mut page);
    page.push_str("\n## Flags and environment variables\n");
    let root = Cli::command();
    let serve = root.find_subcommand("serve").expect("serve exists");
    for command in root.get_subcommands() {
        // `check` has all flags of `serve`, which are not listed again.
        let is_shared = |flag: &Arg| {
            command.get_name() == "check" && serve.get_arguments().any(|of| of == flag)
        };
        let shared = command.get_arguments().any(is_shared);
        write_flags(
            &mut page,
            command,
            command.get_arguments().filter(|flag| !is_shared(flag)),
        );
        if shared {
            page.push_str("\nAll flags of `kube-bastion serve` apply as well.\n");
        }
    }
    page
}

fn write_fields(page: &mut String) {
    let schema = Schema::new();
    let fields = schema.fields();
    write_table(
        page,
        &schema,
        fields
            .iter()
            .filter(|field| !field.path.contains('.') && !schema.is_section(&field.schema)),
    );
    for section in &fields {
        if !schema.is_section(&section.schema) {
            continue;
        }
        let description = schema.description(&section.schema);
        write!(page, "\n### `{}`\n\n{description}\n", section.path)
            .expect("writing to a String does not fail");
        let prefix = format!("{}.", section.path);
        let own = fields.iter().filter(|field| {
            let name = field.path.strip_prefix(&prefix);
            name.is_some_and(|name| !name.contains('.')) && !schema.is_section(&field.schema)
        });
        write_table(page, &schema, own);
    }
}

fn write_table<'a>(page: &mut String, schema: &Schema, fields: impl Iterator<Item = &'a Field>) {
    let mut rows = fields.peekable();
    if rows.peek().is_none() {
        return;
    }
    page.push_str("\n| field | type | default | description |\n|---|---|---|---|\n");
    for field in rows {
        writeln!(
            page,
            "| `{}` | {} | {} | {} |",
            field.path,
            schema.type_of(&field.schema),
            default_of(field),
            schema.description(&field.schema).replace('|', "\\|"),
        )
        .expect("writing to a String does not fail");
    }
}

fn write_flags<'a>(page: &mut String, command: &Command, flags: impl Iterator<Item = &'a Arg>) {
    let about = command.get_about().map(ToString::to_string);
    write!(
        page,
        "\n### `kube-bastion {}`\n\n{}.\n\n\
         | flag | environment variable | description |\n|---|---|---|\n",
        command.get_name(),
        about.unwrap_or_default(),
    )
    .expect("writing to a String does not fail");
    for flag in flags {
        let name = match flag.get_long() {
            Some("help") => continue,
            Some(long) => format!("--{long}"),
            None => String::new(),
        };
        let value = flag
            .get_value_names()
            .filter(|_| flag.get_action().takes_values())
            .map(|names| {
                if flag.is_require_equals_set() {
                    format!("[={}]", names[0])
                } else if flag.is_positional() {
                    names[0].to_string()
                } else {
                    format!(" {}", names[0])
                }
            })
            .unwrap_or_default();
        let variable = flag.get_env().and_then(std::ffi::OsStr::to_str);
        let mut help = flag.get_help().map(ToString::to_string).unwrap_or_default();
        if let [default] = flag.get_default_values() {
            write!(help, " [default: {}]", default.display())
                .expect("writing to a String does not fail");
        }
        writeln!(
            page,
            "| `{name}{value}` | {} | {} |",
            variable.map_or_else(|| "–".to_owned(), |name| format!("`{name}`")),
            help.replace('|', "\\|"),
        )
        .expect("writing to a String does not fail");
    }
}
