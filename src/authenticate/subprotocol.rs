//! Bearer tokens of browsers, whose WebSocket API can set no header except the subprotocols
//! (CONFORMANCE C62).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{HeaderMap, HeaderValue, SEC_WEBSOCKET_PROTOCOL};

const PREFIX: &str = "base64url.bearer.authorization.k8s.io.";

/// Reason why the subprotocols of a WebSocket request give no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubprotocolError {
    /// The server must select one of the offered subprotocols, and must not select the token.
    #[error("the token is the only subprotocol; offer another one that the server can select")]
    TokenOnly,
    #[error("the subprotocols without the token are not a valid header value")]
    InvalidHeader,
    #[error("more than one subprotocol contains a token")]
    SeveralTokens,
    #[error("the token in the subprotocol is not base64url without padding")]
    NotBase64Url,
    #[error("the token in the subprotocol is not UTF-8")]
    NotUtf8,
}

/// Returns true if a subprotocol contains a token.
pub(super) fn has_token(headers: &HeaderMap) -> bool {
    headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .any(|entry| entry.trim_ascii().starts_with(PREFIX.as_bytes()))
}

/// Removes the token from the offered subprotocols; the others stay.
///
/// # Errors
/// [`SubprotocolError`], for the log. The token is removed nevertheless.
pub(super) fn take_token(headers: &mut HeaderMap) -> Result<Option<String>, SubprotocolError> {
    if !headers.contains_key(SEC_WEBSOCKET_PROTOCOL) {
        return Ok(None);
    }
    // Parsed as bytes: a value that is not ASCII must not hide the token beside it.
    let offered: Vec<_> = headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .cloned()
        .collect();
    let entries = offered
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii);
    let (tokens, others): (Vec<&[u8]>, Vec<&[u8]>) =
        entries.partition(|entry| entry.starts_with(PREFIX.as_bytes()));
    if tokens.is_empty() {
        return Ok(None);
    }
    headers.remove(SEC_WEBSOCKET_PROTOCOL);
    if others.is_empty() {
        return Err(SubprotocolError::TokenOnly);
    }
    let others = HeaderValue::from_bytes(&others.join(&b","[..]))
        .map_err(|_| SubprotocolError::InvalidHeader)?;
    headers.insert(SEC_WEBSOCKET_PROTOCOL, others);
    let [token] = tokens[..] else {
        return Err(SubprotocolError::SeveralTokens);
    };
    let token = URL_SAFE_NO_PAD
        .decode(&token[PREFIX.len()..])
        .map_err(|_| SubprotocolError::NotBase64Url)?;
    let token = String::from_utf8(token).map_err(|_| SubprotocolError::NotUtf8)?;
    Ok(Some(token).filter(|token| !token.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removes_token_and_keeps_other_subprotocols() {
        let cases: [(&[&'static str], _, Option<&str>); 8] = [
            (&["chat"], Ok(None), Some("chat")),
            (
                &["base64url.bearer.authorization.k8s.io.Z29vZA, chat, log"],
                Ok(Some("good")),
                Some("chat,log"),
            ),
            (
                &["chat", "base64url.bearer.authorization.k8s.io.Z29vZA"],
                Ok(Some("good")),
                Some("chat"),
            ),
            (
                &["base64url.bearer.authorization.k8s.io.Z29vZA"],
                Err(SubprotocolError::TokenOnly),
                None,
            ),
            (
                &["base64url.bearer.authorization.k8s.io.Z29vZA==,chat"],
                Err(SubprotocolError::NotBase64Url),
                Some("chat"),
            ),
            (
                &["base64url.bearer.authorization.k8s.io._w,chat"],
                Err(SubprotocolError::NotUtf8),
                Some("chat"),
            ),
            (
                &["base64url.bearer.authorization.k8s.io.,chat"],
                Ok(None),
                Some("chat"),
            ),
            (
                &[
                    "base64url.bearer.authorization.k8s.io.YQ,chat,base64url.bearer.authorization.k8s.io.Yg",
                ],
                Err(SubprotocolError::SeveralTokens),
                Some("chat"),
            ),
        ];
        for (offered, token, remaining) in cases {
            let mut headers = HeaderMap::new();
            for value in offered {
                headers.append(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(value));
            }
            assert_eq!(
                take_token(&mut headers),
                token.map(|token: Option<&str>| token.map(str::to_owned)),
                "{offered:?}"
            );
            assert_eq!(
                headers
                    .get(SEC_WEBSOCKET_PROTOCOL)
                    .map(|value| value.to_str().unwrap()),
                remaining,
                "{offered:?}"
            );
        }
    }

    #[test]
    fn finds_token_beside_value_that_is_not_ascii() {
        let mut headers = HeaderMap::new();
        let offered = b"\xe9chat, base64url.bearer.authorization.k8s.io.Z29vZA";
        headers.insert(
            SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_bytes(offered).unwrap(),
        );
        assert_eq!(take_token(&mut headers), Ok(Some("good".into())));
        assert_eq!(headers[SEC_WEBSOCKET_PROTOCOL].as_bytes(), b"\xe9chat");
    }
}
