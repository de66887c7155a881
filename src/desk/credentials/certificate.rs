//! Client certificates of the kubeconfig, reloaded when their files change.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::sign::CertifiedKey;

use super::renewal::Clock;
use super::{CredentialsError, Login};
use crate::model::error_chain;
use crate::tls::Pair;

/// Interval in which the files are read again.
const RELOAD_INTERVAL: Duration = Duration::from_secs(10);
/// Minimum time between two warnings.
const WARN_INTERVAL: Duration = Duration::from_mins(1);

/// Client certificate of a user.
pub(super) enum Certificate {
    None,
    Loaded(Box<Loaded>),
}

pub(super) struct Loaded {
    user: String,
    certificate: Source,
    key: Source,
    clock: Clock,
    state: Mutex<State>,
}

struct State {
    /// Contents of the certificate file.
    chain: Vec<u8>,
    pair: Arc<CertifiedKey>,
    generation: u32,
    checked: SystemTime,
    warned: Option<SystemTime>,
}

/// PEM, or the path of a file with it.
enum Source {
    Data(&'static str, Vec<u8>),
    File(PathBuf),
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Loaded(_) => "Loaded",
        })
    }
}

impl Certificate {
    /// Loads the certificate of a user entry. Data beats files.
    pub fn load(login: &Login, clock: Clock) -> Result<Self, CredentialsError> {
        let user = &login.user;
        let certificate = Source::new(
            login,
            "client-certificate-data",
            "client-certificate",
            user.client_certificate_data.as_deref(),
            user.client_certificate.as_ref(),
        )?;
        let Some(certificate) = certificate else {
            return Ok(Self::None);
        };
        let key = Source::new(
            login,
            "client-key-data",
            "client-key",
            user.client_key_data
                .as_ref()
                .map(crate::kubeconfig::Secret::expose),
            user.client_key.as_ref(),
        )?;
        let key = key.ok_or_else(|| CredentialsError::NoKey {
            user: login.name.clone(),
        })?;
        let read = |source: &Source| match source {
            Source::Data(_, pem) => Ok(pem.clone()),
            Source::File(path) => {
                std::fs::read(path).map_err(|error| CredentialsError::ReadCertificate {
                    user: login.name.clone(),
                    path: path.clone(),
                    source: Arc::new(error),
                })
            }
        };
        let (chain, key_pem) = (read(&certificate)?, read(&key)?);
        let pair = parse(
            &login.name,
            certificate.path(),
            &chain,
            key.path(),
            &key_pem,
        )?;
        let checked = clock();
        Ok(Self::Loaded(Box::new(Loaded {
            user: login.name.clone(),
            certificate,
            key,
            clock,
            state: Mutex::new(State {
                chain,
                pair,
                generation: 0,
                checked,
                warned: None,
            }),
        })))
    }

    pub fn is_some(&self) -> bool {
        matches!(self, Self::Loaded(_))
    }

    pub fn current(&self) -> Option<Arc<CertifiedKey>> {
        match self {
            Self::None => None,
            Self::Loaded(loaded) => Some(Arc::clone(&loaded.state().pair)),
        }
    }

    /// Returns the number of reloads.
    pub fn generation(&self) -> u32 {
        match self {
            Self::None => 0,
            Self::Loaded(loaded) => loaded.state().generation,
        }
    }

    /// Reads the files again if that is due. The old certificate stays if they cannot be used.
    pub async fn reload(&self) {
        let Self::Loaded(loaded) = self else {
            return;
        };
        let Source::File(path) = &loaded.certificate else {
            return;
        };
        let now = (loaded.clock)();
        {
            let mut state = loaded.state();
            let passed = now.duration_since(state.checked);
            if passed.is_ok_and(|passed| passed < RELOAD_INTERVAL) {
                return;
            }
            state.checked = now;
        }
        if let Err(error) = loaded.read_again(path).await {
            let mut state = loaded.state();
            let warned = state.warned.and_then(|time| now.duration_since(time).ok());
            if warned.is_none_or(|passed| passed >= WARN_INTERVAL) {
                state.warned = Some(now);
                crate::desk::warn(format_args!("{}; using the old one", error_chain(&error)));
            }
        }
    }
}

impl Loaded {
    async fn read_again(&self, path: &Path) -> Result<(), CredentialsError> {
        let chain = self.read(path).await?;
        if chain == self.state().chain {
            return Ok(());
        }
        let key = match &self.key {
            Source::Data(_, pem) => pem.clone(),
            Source::File(path) => self.read(path).await?,
        };
        let pair = parse(&self.user, path, &chain, self.key.path(), &key)?;
        let mut state = self.state();
        state.chain = chain;
        state.pair = pair;
        state.generation += 1;
        Ok(())
    }

    async fn read(&self, path: &Path) -> Result<Vec<u8>, CredentialsError> {
        let read = tokio::fs::read(path).await;
        read.map_err(|source| CredentialsError::ReadCertificate {
            user: self.user.clone(),
            path: path.to_owned(),
            source: Arc::new(source),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source {
    fn new(
        login: &Login,
        data_field: &'static str,
        file_field: &'static str,
        data: Option<&str>,
        file: Option<&PathBuf>,
    ) -> Result<Option<Self>, CredentialsError> {
        if let Some(data) = data {
            let pem = STANDARD.decode(data.trim());
            let pem = pem.map_err(|_| CredentialsError::NotBase64 {
                user: login.name.clone(),
                field: data_field,
                file: file_field,
            })?;
            return Ok(Some(Self::Data(data_field, pem)));
        }
        Ok(file.map(|path| Self::File(path.clone())))
    }

    /// Returns the path, or the name of the field, for errors.
    fn path(&self) -> &Path {
        match self {
            Self::Data(field, _) => Path::new(field),
            Self::File(path) => path,
        }
    }
}

/// Parses a certificate chain and its key.
pub(super) fn parse(
    user: &str,
    certificate: &Path,
    chain: &[u8],
    key_path: &Path,
    key: &[u8],
) -> Result<Arc<CertifiedKey>, CredentialsError> {
    let pair = Pair::parse_client(certificate, chain, key_path, key);
    pair.map(|pair| pair.key)
        .map_err(|source| CredentialsError::Certificate {
            user: user.to_owned(),
            source: Arc::new(source),
        })
}
