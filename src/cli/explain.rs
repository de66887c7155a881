//! Additions to clap's errors: the environment variable that a value is from, the argument that is
//! not UTF-8, and remedies for arguments that are not flags.

use std::ffi::{OsStr, OsString};

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::environment::PREFIX;

/// Adds what `error` lacks. `arguments` are those of the command line, `variables` those of the
/// environment.
pub(super) fn explain(
    mut error: clap::Error,
    arguments: &[OsString],
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> clap::Error {
    let invalid = error.get(ContextKind::InvalidArg).map(ToString::to_string);
    let tip = match error.kind() {
        ErrorKind::InvalidUtf8 => return not_utf8(arguments, variables).unwrap_or(error),
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => invalid.and_then(|argument| {
            // `--workers <COUNT>`
            let flag = argument.split([' ', '[', '=']).next()?.to_owned();
            let is_given = arguments.iter().filter_map(|given| given.to_str());
            let is_given = is_given
                .filter_map(|given| given.split('=').next())
                .any(|given| given == flag);
            let variable = variable_of(&flag);
            (!is_given).then(|| format!("the value is that of the environment variable {variable}"))
        }),
        ErrorKind::UnknownArgument => invalid.and_then(|argument| unknown(&argument, arguments)),
        _ => None,
    };
    if let Some(tip) = tip {
        let tips = ContextValue::StyledStrs(vec![tip.into()]);
        error.insert(ContextKind::Suggested, tips);
    }
    error
}

/// Returns the name of the environment variable of a flag.
fn variable_of(flag: &str) -> String {
    let name = flag.trim_start_matches('-').replace('-', "_");
    format!("{PREFIX}{}", name.to_uppercase())
}

fn unknown(argument: &str, arguments: &[OsString]) -> Option<String> {
    let Some(short) = argument.strip_prefix('-') else {
        return Some("settings are flags: a file of settings is --config=FILE".to_owned());
    };
    // clap reads `-config` as the short flags `-c`, `-o` and so on.
    let cluster = arguments.iter().filter_map(|given| given.to_str());
    let long = cluster
        .filter_map(|given| given.strip_prefix('-'))
        .find(|given| given.len() > 1 && given.starts_with(short) && !given.starts_with('-'))?;
    let name = long.split('=').next()?;
    name.bytes()
        .all(|byte| byte.is_ascii_lowercase() || byte == b'-')
        .then(|| format!("flags have two dashes: --{name}"))
}

/// Returns an error that names the argument or the variable that is not UTF-8.
fn not_utf8(
    arguments: &[OsString],
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Option<clap::Error> {
    let is_invalid = |text: &OsStr| text.to_str().is_none();
    let message = if let Some(argument) = arguments.iter().find(|argument| is_invalid(argument)) {
        format!("the argument {argument:?} is not UTF-8")
    } else {
        let mut settings = variables.into_iter().filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            name.starts_with(PREFIX).then_some((name, value))
        });
        let (name, value) = settings.find(|(_, value)| is_invalid(value))?;
        format!("the value {value:?} of the environment variable {name} is not UTF-8")
    };
    Some(clap::Error::raw(ErrorKind::InvalidUtf8, message + "\n"))
}
