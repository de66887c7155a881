//! Events of Services, named as those of cloud controllers.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time};
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::service::Service;
use crate::model::error_chain;

/// Name of the bastion as the source of events.
const COMPONENT: &str = "kube-bastion";
/// Maximum length of a message (events.k8s.io/v1), in bytes. Conditions use the same limit, for
/// readability.
const MAX_MESSAGE_BYTES: usize = 1024;
/// Events of a namespace that may be sent at the same moment, as client-go's limit for one object.
const BURST: u32 = 25;
/// Interval at which one more event may be sent.
const INTERVAL: Duration = Duration::from_secs(1);
/// Maximum number of namespaces with a rate of their own.
const MAX_NAMESPACES: usize = 256;
/// Maximum time of the request for an event.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Severity of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    Normal,
    Warning,
}

/// Text of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub r#type: EventType,
    pub reason: &'static str,
    pub message: Cow<'static, str>,
}

impl Notice {
    /// Returns a normal event with a constant message.
    pub const fn fixed(reason: &'static str, message: &'static str) -> Self {
        Self {
            r#type: EventType::Normal,
            reason,
            message: Cow::Borrowed(message),
        }
    }
}

/// Cuts a message of an event, a condition or a log line.
pub fn cut(message: &mut String) {
    message.truncate(message.floor_char_boundary(MAX_MESSAGE_BYTES));
}

/// Sends events. They are hints for users, so an event beyond the rate, or one that the API server
/// rejects, is logged and dropped. Each announces a change of a status, so that none repeats.
#[expect(missing_debug_implementations, reason = "kube's client has no Debug")]
pub struct Events {
    client: Client,
    /// Name of this replica.
    instance: String,
    rates: Mutex<Rates>,
}

impl Events {
    pub fn new(client: Client, instance: &str) -> Self {
        Self {
            client,
            instance: instance.to_owned(),
            rates: Mutex::new(Rates::new(Instant::now())),
        }
    }

    /// Sends an event about a Service.
    pub async fn send(&self, service: &Service, notice: &Notice) {
        let key = service.key();
        let reason = notice.reason;
        let permitted = self.rates.lock().await.take(&key.namespace, Instant::now());
        if !permitted {
            tracing::debug!(service = %key, reason, "event dropped: too many at the same time");
            return;
        }
        tracing::info!(service = %key, reason, message = %notice.message, "event");
        let event = event(service, notice, &self.instance, Timestamp::now());
        let api = Api::<Event>::namespaced(self.client.clone(), &key.namespace);
        let parameters = PostParams::default();
        match timeout(TIMEOUT, api.create(&parameters, &event)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                let error = error_chain(&error);
                tracing::warn!(service = %key, reason, error, "cannot send an event");
            }
            Err(_) => tracing::warn!(service = %key, reason, "cannot send an event in time"),
        }
    }
}

fn event(service: &Service, notice: &Notice, instance: &str, now: Timestamp) -> Event {
    let meta = &service.metadata;
    let name = meta.name.clone().unwrap_or_default();
    // Unique for the object, as client-go names events.
    let suffix = format!("{:x}", now.as_nanosecond());
    let mut message = notice.message.to_string();
    cut(&mut message);
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{suffix}")),
            namespace: meta.namespace.clone(),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Service".into()),
            name: Some(name),
            namespace: meta.namespace.clone(),
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
            ..ObjectReference::default()
        },
        type_: Some(
            match notice.r#type {
                EventType::Normal => "Normal",
                EventType::Warning => "Warning",
            }
            .into(),
        ),
        reason: Some(notice.reason.into()),
        message: Some(message),
        source: Some(EventSource {
            component: Some(COMPONENT.into()),
            host: None,
        }),
        reporting_component: Some(COMPONENT.into()),
        reporting_instance: Some(instance.to_owned()),
        action: Some("Sync".into()),
        event_time: Some(MicroTime(now)),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        ..Event::default()
    }
}

/// Rates of the namespaces, so that the Services of one do not use up the events of others.
#[derive(Debug)]
struct Rates {
    /// Namespaces without an entry have all tokens.
    of_namespace: HashMap<Box<str>, Rate>,
    /// Rate of all namespaces beyond the maximum.
    rest: Rate,
}

impl Rates {
    fn new(now: Instant) -> Self {
        Self {
            of_namespace: HashMap::new(),
            rest: Rate::new(now),
        }
    }

    /// Takes a token of a namespace. Returns false if there is none.
    fn take(&mut self, namespace: &str, now: Instant) -> bool {
        if let Some(rate) = self.of_namespace.get_mut(namespace) {
            return rate.take(now);
        }
        if self.of_namespace.len() >= MAX_NAMESPACES {
            self.of_namespace.retain(|_, rate| !rate.is_full(now));
        }
        if self.of_namespace.len() >= MAX_NAMESPACES {
            return self.rest.take(now);
        }
        let rate = self.of_namespace.entry(namespace.into());
        rate.or_insert_with(|| Rate::new(now)).take(now)
    }
}

/// Token bucket of [`BURST`] tokens, filled at [`INTERVAL`].
#[derive(Debug)]
struct Rate {
    tokens: u32,
    filled: Instant,
}

impl Rate {
    fn new(now: Instant) -> Self {
        Self {
            tokens: BURST,
            filled: now,
        }
    }

    /// Adds the tokens of the time that has passed. Returns true if there are all.
    fn is_full(&mut self, now: Instant) -> bool {
        while self.tokens < BURST && now.duration_since(self.filled) >= INTERVAL {
            self.tokens += 1;
            self.filled += INTERVAL;
        }
        if self.tokens == BURST {
            self.filled = now;
        }
        self.tokens == BURST
    }

    /// Takes a token. Returns false if there is none.
    fn take(&mut self, now: Instant) -> bool {
        self.is_full(now);
        let has_token = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        has_token
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn message_is_cut_at_a_character() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "1"},
        }))
        .unwrap();
        let notice = Notice {
            r#type: EventType::Warning,
            reason: "SyncLoadBalancerFailed",
            message: format!("x{}", "ä".repeat(600)).into(),
        };
        let event = event(&service, &notice, "a", Timestamp::UNIX_EPOCH);
        assert_eq!(event.message.unwrap().len(), 1023);
        assert_eq!(event.involved_object.uid.unwrap(), "1");
        assert_eq!(event.type_.unwrap(), "Warning");
    }

    #[test]
    fn rate_allows_a_burst_and_one_event_per_interval() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        let taken = |rate: &mut Rate, at| (0..100).filter(|_| rate.take(at)).count();
        assert_eq!(taken(&mut rate, start), 25);
        assert_eq!(taken(&mut rate, start + INTERVAL / 2), 0);
        assert_eq!(taken(&mut rate, start + INTERVAL * 3), 3);
        assert_eq!(taken(&mut rate, start + INTERVAL * 3600), 25);
    }
    #[test]
    fn namespaces_have_rates_of_their_own() {
        let start = Instant::now();
        let mut rates = Rates::new(start);
        let taken = |rates: &mut Rates, namespace: &str, at| {
            (0..100).filter(|_| rates.take(namespace, at)).count()
        };
        for number in 0..MAX_NAMESPACES {
            assert_eq!(taken(&mut rates, &format!("ns-{number}"), start), 25);
            assert!(!rates.take(&format!("ns-{number}"), start));
        }
        // Those beyond the maximum share one, until others have all tokens.
        assert_eq!(taken(&mut rates, "beyond", start), 25);
        assert_eq!(taken(&mut rates, "further", start), 0);
        assert_eq!(rates.of_namespace.len(), MAX_NAMESPACES);
        let later = start + INTERVAL * 25;
        assert_eq!(taken(&mut rates, "further", later), 25);
        assert_eq!(rates.of_namespace.len(), 1);
    }
}
