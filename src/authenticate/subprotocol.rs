//! Bearer tokens of browsers, which can set no header of a WebSocket but its subprotocols
//! (CONFORMANCE C62).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{HeaderMap, HeaderValue, SEC_WEBSOCKET_PROTOCOL};

const PREFIX: &str = "base64url.bearer.authorization.k8s.io.";

/// Takes the token off the subprotocols that a client offers; the others stay.
///
/// # Errors
/// What is wrong with it, for the log. It is off all the same.
pub(super) fn take_token(headers: &mut HeaderMap) -> Result<Option<String>, &'static str> {
    if !headers.contains_key(SEC_WEBSOCKET_PROTOCOL) {
        return Ok(None);
    }
    // By bytes: what is no text beside it must not hide a token.
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
        return Err(
            "no other subprotocol is offered beside the token, so that none could be chosen",
        );
    }
    let others = HeaderValue::from_bytes(&others.join(&b","[..]))
        .map_err(|_| "the subprotocols are no header value")?;
    headers.insert(SEC_WEBSOCKET_PROTOCOL, others);
    let [token] = tokens[..] else {
        return Err("several subprotocols hold a token");
    };
    let token = URL_SAFE_NO_PAD
        .decode(&token[PREFIX.len()..])
        .map_err(|_| "the token is not base64url")?;
    let token = String::from_utf8(token).map_err(|_| "the token is not UTF-8")?;
    Ok(Some(token).filter(|token| !token.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_taken_and_the_other_subprotocols_stay() {
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
                Err(()),
                None,
            ),
            (
                &["base64url.bearer.authorization.k8s.io.Z29vZA==,chat"],
                Err(()),
                Some("chat"),
            ),
            (
                &["base64url.bearer.authorization.k8s.io._w,chat"],
                Err(()),
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
                Err(()),
                Some("chat"),
            ),
        ];
        let mut headers = HeaderMap::new();
        let hidden = b"\xe9chat, base64url.bearer.authorization.k8s.io.Z29vZA";
        headers.insert(
            SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_bytes(hidden).unwrap(),
        );
        assert_eq!(take_token(&mut headers), Ok(Some("good".into())));
        assert_eq!(headers[SEC_WEBSOCKET_PROTOCOL].as_bytes(), b"\xe9chat");
        for (offered, token, left) in cases {
            let mut headers = HeaderMap::new();
            for value in offered {
                headers.append(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(value));
            }
            let taken = take_token(&mut headers).map_err(drop);
            assert_eq!(
                taken,
                token.map(|token: Option<&str>| token.map(str::to_owned)),
                "{offered:?}"
            );
            assert_eq!(
                headers
                    .get(SEC_WEBSOCKET_PROTOCOL)
                    .map(|value| value.to_str().unwrap()),
                left,
                "{offered:?}"
            );
        }
    }
}
