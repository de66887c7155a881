//! Web applications behind the bastion, each used in headless Chromium through `kubectl proxy`, and
//! some through `kube-bastion open`.
//! `docs/apps.md` lists the settings that they need.
//!
//! Screenshots are written to `target/screenshots`.

mod debian;
mod node;
mod python;
mod site;

pub use debian::{
    prometheus_answers_a_query, rabbitmq_management_creates_a_queue,
    rabbitmq_management_creates_a_queue_opened,
};
pub use node::{node_red_deploys_a_flow, verdaccio_publishes_and_shows_packages};
pub use python::{
    jupyterlab_runs_a_notebook, jupyterlab_runs_a_notebook_opened, streamlit_reruns_its_page,
    streamlit_reruns_its_page_opened, tensorboard_shows_scalars,
};
