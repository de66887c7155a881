//! Renewal of credentials that expire: ahead of time, by one task for all requests, and rarely.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use http::HeaderValue;
use rustls::sign::CertifiedKey;

use super::exec::Plugin;
use super::oidc::Oidc;
use super::{CredentialsError, bearer};
use crate::kubeconfig::Secret;
use crate::model::error_chain;

/// Minimum time between two runs of a plugin, or two requests to an identity provider.
const MIN_INTERVAL: Duration = Duration::from_secs(10);
/// Credentials are renewed this long before they expire, or after [`MAX_AGE`] of their life.
const MARGIN: Duration = Duration::from_mins(1);
const MAX_AGE: f64 = 0.8;
/// Credentials that live longer are not renewed earlier, so that short ones do not run the plugin
/// all the time.
const MIN_AGE: Duration = Duration::from_mins(1);
/// Interval in which files are read again. client-go does so every minute; a rotated token is used
/// sooner.
const FILE_INTERVAL: Duration = Duration::from_secs(10);
/// Minimum time between two warnings about failed renewals.
const WARN_INTERVAL: Duration = Duration::from_mins(1);

/// Returns the time of day, which goes on while the machine sleeps.
pub(super) type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

pub(super) fn system_clock() -> Clock {
    Arc::new(SystemTime::now)
}

/// Source of `Authorization`.
pub(super) enum Provider {
    /// Static, or none.
    Fixed(Option<HeaderValue>),
    TokenFile {
        path: PathBuf,
        /// Static token that is used while the file cannot be read.
        fallback: Option<HeaderValue>,
    },
    Exec(Box<Plugin>),
    Oidc(Box<Oidc>),
}

/// Credentials as a provider returns them.
#[derive(Clone, Debug, Default)]
pub(super) struct Obtained {
    pub authorization: Option<HeaderValue>,
    pub certificate: Option<Arc<CertifiedKey>>,
    pub expires: Option<SystemTime>,
}

/// Current credentials of a provider.
pub(super) struct Renewal {
    provider: Provider,
    /// Name of the user, for warnings.
    user: String,
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    current: Option<Current>,
    /// Renewal in progress, which all requests share.
    flight: Option<Flight>,
    /// Time of the last run, and its failure.
    last_run: Option<SystemTime>,
    failure: Option<CredentialsError>,
    /// Time of the last run because of a 401. Others do not delay it: the first token of a plugin
    /// may be one that the plugin has cached and that is not valid anymore.
    last_rejection: Option<SystemTime>,
    last_warning: Option<SystemTime>,
    /// Number of changes of the client certificate.
    generation: u32,
}

#[derive(Clone)]
struct Current {
    obtained: Obtained,
    /// Time of the next renewal. `None` is never.
    renew_at: Option<SystemTime>,
}

type Flight = Shared<BoxFuture<'static, ()>>;

/// Action of a request.
enum Step {
    Use(Obtained),
    /// Uses the credentials, and starts a renewal in the background.
    UseAndRenew(Obtained),
    /// Waits for a renewal.
    Renew,
    Fail(CredentialsError),
}

impl fmt::Debug for Renewal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renewal")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

impl Renewal {
    pub fn new(provider: Provider, user: String, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            provider,
            user,
            clock,
            state: Mutex::default(),
        })
    }

    /// Returns true if the provider may return a client certificate.
    pub fn has_certificate(&self) -> bool {
        matches!(self.provider, Provider::Exec(_))
    }

    /// Returns the number of changes of the client certificate.
    pub fn generation(&self) -> u32 {
        self.state().generation
    }

    /// Returns the client certificate that was obtained last, if any, with the number of changes.
    pub fn certificate(&self) -> (u32, Option<Arc<CertifiedKey>>) {
        let state = self.state();
        let current = state.current.as_ref();
        let certificate = current.and_then(|current| current.obtained.certificate.clone());
        (state.generation, certificate)
    }

    /// Returns valid credentials.
    pub async fn current(self: &Arc<Self>) -> Result<Obtained, CredentialsError> {
        if let Provider::Fixed(authorization) = &self.provider {
            return Ok(Obtained {
                authorization: authorization.clone(),
                ..Obtained::default()
            });
        }
        let flight = {
            let now = (self.clock)();
            let mut state = self.state();
            match self.step(&state, now) {
                Step::Use(obtained) => return Ok(obtained),
                Step::Fail(error) => return Err(error),
                Step::UseAndRenew(obtained) => {
                    drop(self.start(&mut state, now));
                    return Ok(obtained);
                }
                Step::Renew => self.start(&mut state, now),
            }
        };
        flight.await;
        let state = self.state();
        match (&state.current, &state.failure) {
            // A plugin may return a token that is about to expire.
            (Some(current), None) => Ok(current.obtained.clone()),
            (Some(current), Some(_)) if !current.obtained.has_expired((self.clock)()) => {
                Ok(current.obtained.clone())
            }
            (_, Some(error)) => Err(error.clone()),
            (None, None) => Err(CredentialsError::Canceled),
        }
    }

    /// Returns true if the provider may have newer credentials after a rejection.
    pub fn is_renewable(&self) -> bool {
        !matches!(self.provider, Provider::Fixed(_))
    }

    /// Renews credentials that were rejected. `None` if nothing newer can be had.
    pub async fn renew(
        self: &Arc<Self>,
        rejected: &Obtained,
    ) -> Result<Option<Obtained>, CredentialsError> {
        let newer = |state: &State| {
            let current = state.current.as_ref()?;
            (!current.obtained.is_same_login(rejected)).then(|| current.obtained.clone())
        };
        let flight = {
            let now = (self.clock)();
            let mut state = self.state();
            if let Some(newer) = newer(&state) {
                return Ok(Some(newer));
            }
            let may_run = match self.provider {
                Provider::Fixed(_) => false,
                Provider::TokenFile { .. } => true,
                Provider::Exec(_) | Provider::Oidc(_) => {
                    state.flight().is_some() || is_past(state.last_rejection, MIN_INTERVAL, now)
                }
            };
            if !may_run {
                return Ok(None);
            }
            if state.flight().is_none() {
                state.last_rejection = Some(now);
            }
            self.start(&mut state, now)
        };
        flight.await;
        let state = self.state();
        if let Some(error) = &state.failure {
            return Err(error.clone());
        }
        Ok(newer(&state))
    }

    fn step(&self, state: &State, now: SystemTime) -> Step {
        let is_file = matches!(self.provider, Provider::TokenFile { .. });
        // Failures are not repeated by every request. Reading a file costs nothing.
        let may_run = is_file || is_past(state.last_run, MIN_INTERVAL, now);
        let fail = || {
            state
                .failure
                .clone()
                .filter(|_| !may_run && state.flight().is_none())
        };
        let Some(current) = &state.current else {
            return fail().map_or(Step::Renew, Step::Fail);
        };
        let obtained = current.obtained.clone();
        if obtained.has_expired(now) {
            return match fail() {
                Some(error) => Step::Fail(error),
                None if may_run || state.flight().is_some() => Step::Renew,
                // The newest that the plugin has.
                None => Step::Use(obtained),
            };
        }
        let is_due = current.renew_at.is_some_and(|due| now >= due);
        if !is_due || !may_run || state.flight().is_some() && !is_file {
            Step::Use(obtained)
        } else if is_file {
            Step::Renew
        } else {
            Step::UseAndRenew(obtained)
        }
    }

    /// Returns the renewal in progress, or starts one. It is a task of its own, so that it does not
    /// end with the request that started it: the user may be logging in.
    fn start(self: &Arc<Self>, state: &mut State, now: SystemTime) -> Flight {
        if let Some(flight) = state.flight() {
            return flight.clone();
        }
        state.last_run = Some(now);
        let replaced = state.current.as_ref();
        let replaced = replaced.and_then(|current| current.obtained.authorization.clone());
        let renewal = Arc::clone(self);
        let task = tokio::spawn(async move {
            let obtained = renewal.obtain(replaced).await;
            renewal.finish(obtained);
        });
        let flight = task.map(drop).boxed().shared();
        state.flight = Some(flight.clone());
        flight
    }

    async fn obtain(&self, replaced: Option<HeaderValue>) -> Result<Obtained, CredentialsError> {
        match &self.provider {
            Provider::Fixed(authorization) => Ok(Obtained {
                authorization: authorization.clone(),
                ..Obtained::default()
            }),
            Provider::TokenFile { path, fallback } => {
                let authorization = match (read_token(path).await, fallback) {
                    (Ok(token), _) => token,
                    (Err(_), Some(fallback)) => fallback.clone(),
                    (Err(error), None) => return Err(error),
                };
                Ok(Obtained {
                    authorization: Some(authorization),
                    ..Obtained::default()
                })
            }
            Provider::Exec(plugin) => plugin.run().await,
            Provider::Oidc(oidc) => oidc.token((self.clock)(), replaced.as_ref()).await,
        }
    }

    fn finish(&self, result: Result<Obtained, CredentialsError>) {
        let now = (self.clock)();
        let mut state = self.state();
        state.flight = None;
        state.last_run = Some(now);
        match result {
            Ok(obtained) => {
                let before = state.current.as_ref();
                let before = before.and_then(|current| current.obtained.certificate.as_ref());
                if !is_same(before, obtained.certificate.as_ref()) {
                    state.generation += 1;
                }
                let renew_at = match self.provider {
                    Provider::TokenFile { .. } => Some(now + FILE_INTERVAL),
                    _ => renewal_time(now, obtained.expires),
                };
                state.current = Some(Current { obtained, renew_at });
                state.failure = None;
            }
            Err(error) => {
                if let Some(current) = &state.current
                    && is_past(state.last_warning, WARN_INTERVAL, now)
                {
                    let effect = if current.obtained.has_expired(now) {
                        "the old ones have expired"
                    } else {
                        "using the old ones until they expire"
                    };
                    state.last_warning = Some(now);
                    crate::desk::warn(format_args!(
                        "cannot renew the credentials of the user {:?}; {effect}: {}",
                        self.user,
                        error_chain(&error)
                    ));
                }
                state.failure = Some(error);
            }
        }
    }

    /// Waits for the end of a renewal in the background.
    #[cfg(test)]
    pub async fn settled(&self) {
        let flight = self.state().flight().cloned();
        if let Some(flight) = flight {
            flight.await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Returns the renewal in progress. One whose runtime has ended does not count.
    fn flight(&self) -> Option<&Flight> {
        self.flight
            .as_ref()
            .filter(|flight| flight.peek().is_none())
    }
}

impl Obtained {
    fn has_expired(&self, now: SystemTime) -> bool {
        self.expires.is_some_and(|expires| now >= expires)
    }

    /// Returns true if a server sees no difference.
    fn is_same_login(&self, other: &Self) -> bool {
        self.authorization == other.authorization
            && is_same(self.certificate.as_ref(), other.certificate.as_ref())
    }
}

/// Returns the time to renew credentials that were obtained at `now`: [`MARGIN`] before they expire
/// or after [`MAX_AGE`] of their life, whichever is earlier, but not before [`MIN_AGE`] as long as
/// this is within [`MAX_AGE`].
fn renewal_time(now: SystemTime, expires: Option<SystemTime>) -> Option<SystemTime> {
    let life = expires?.duration_since(now).unwrap_or_default();
    let latest = life.mul_f64(MAX_AGE);
    let age = life.saturating_sub(MARGIN).min(latest);
    now.checked_add(age.max(MIN_AGE.min(latest)))
}

/// Returns true if `interval` has passed since `time`. A clock that was set back does not block.
fn is_past(time: Option<SystemTime>, interval: Duration, now: SystemTime) -> bool {
    time.is_none_or(|time| {
        now.duration_since(time)
            .map_or(true, |passed| passed >= interval)
    })
}

fn is_same(one: Option<&Arc<CertifiedKey>>, other: Option<&Arc<CertifiedKey>>) -> bool {
    one.map(|pair| &pair.cert) == other.map(|pair| &pair.cert)
}

/// Reads a token file.
async fn read_token(path: &PathBuf) -> Result<HeaderValue, CredentialsError> {
    let read = tokio::fs::read_to_string(path).await;
    let text = read.map_err(|source| CredentialsError::TokenFile {
        path: path.clone(),
        source: Arc::new(source),
    })?;
    if text.trim().is_empty() {
        return Err(CredentialsError::EmptyTokenFile { path: path.clone() });
    }
    bearer(&Secret::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renews_ahead_of_expiry_but_not_more_often_than_once_a_minute() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_hours(500_000);
        for (life, expected) in [
            (0, 0),
            (10, 8),
            (50, 40),
            (75, 60),
            (90, 60),
            (120, 60),
            (200, 140),
            (300, 240),
            (600, 480),
            (3_600, 2_880),
        ] {
            let expires = Some(start + Duration::from_secs(life));
            let renewal = renewal_time(start, expires).unwrap();
            assert_eq!(
                renewal.duration_since(start).unwrap().as_secs(),
                expected,
                "{life}"
            );
        }
        assert_eq!(renewal_time(start, None), None);
        let expired = Some(start - Duration::from_secs(5));
        assert_eq!(renewal_time(start, expired), Some(start));
    }
}
