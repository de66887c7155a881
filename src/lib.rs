pub mod cluster;
pub mod config;
pub mod drain;
pub mod metrics;
pub mod model;
pub mod ready;
pub mod telemetry;
pub mod tls;
