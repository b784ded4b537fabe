//! Apps and their replicas.

use super::{Api, Names, json, name, parameter, query};
use crate::core::DeployError;
use crate::refusal::Refused;
use crate::steward::Steward;
use axum::Json;
use axum::extract::{Request, State};
use gantry_api::http::{AppDetail, AppSummary, Plan, Replica, Scale};
use gantry_api::ids::{AppName, ServiceName};
use gantry_api::spec::App;
use serde::Deserialize;
use std::sync::Arc;

#[derive(Deserialize)]
pub(super) struct DeployQuery {
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize)]
pub(super) struct RemoveQuery {
    #[serde(default)]
    volumes: bool,
}

#[derive(Deserialize)]
pub(super) struct ReplicasQuery {
    #[serde(default)]
    app: Option<String>,
}

pub(super) async fn list(State(api): State<Arc<Api>>) -> Result<Json<Vec<AppSummary>>, Refused> {
    api.handle.ask(|steward| steward.world.show_apps()).await.map(Json)
}

pub(super) async fn detail(State(api): State<Arc<Api>>, names: Names) -> Result<Json<AppDetail>, Refused> {
    let app: AppName = name(&parameter(&names, "app")?)?;
    let missing = Refused::from(DeployError::NoApp(app.clone()));
    api.handle.ask(move |steward| steward.world.show_app(&app)).await?.map(Json).ok_or(missing)
}

pub(super) async fn deploy(State(api): State<Arc<Api>>, names: Names, request: Request) -> Result<Json<Plan>, Refused> {
    let app: AppName = name(&parameter(&names, "app")?)?;
    let DeployQuery { dry_run } = query(&request)?;
    let spec: App = json(request.into_body()).await?;
    if spec.name != app {
        return Err(Refused::invalid(format!("the path names app {app}, the body names app {}", spec.name)));
    }
    api.handle.ask(move |steward| carry_out(steward, |world| world.prepare(spec), dry_run)).await?.map(Json)
}

pub(super) async fn scale(State(api): State<Arc<Api>>, names: Names, request: Request) -> Result<Json<Plan>, Refused> {
    let app: AppName = name(&parameter(&names, "app")?)?;
    let service: ServiceName = name(&parameter(&names, "service")?)?;
    let DeployQuery { dry_run } = query(&request)?;
    let Scale { replicas } = json(request.into_body()).await?;
    let job =
        move |steward: &mut Steward| carry_out(steward, |world| world.prepare_scale(&app, &service, replicas), dry_run);
    api.handle.ask(job).await?.map(Json)
}

fn carry_out(
    steward: &mut Steward,
    prepare: impl FnOnce(&crate::core::World) -> Result<crate::core::Deployment, DeployError>,
    dry_run: bool,
) -> Result<Plan, Refused> {
    let made = prepare(&steward.world)?;
    if dry_run {
        return Ok(made.plan);
    }
    let now = steward.now();
    let (effects, plan) = steward.world.carry_out(made, now);
    steward.record_all(effects)?;
    Ok(plan)
}

pub(super) async fn remove(State(api): State<Arc<Api>>, names: Names, request: Request) -> Result<Json<Plan>, Refused> {
    let app: AppName = name(&parameter(&names, "app")?)?;
    let RemoveQuery { volumes } = query(&request)?;
    let job = move |steward: &mut Steward| {
        let (effects, plan) = steward.world.remove(&app, volumes)?;
        steward.record_all(vec![effects])?;
        Ok(plan)
    };
    api.handle.ask(job).await?.map(Json)
}

pub(super) async fn replicas(State(api): State<Arc<Api>>, request: Request) -> Result<Json<Vec<Replica>>, Refused> {
    let ReplicasQuery { app } = query(&request)?;
    let app: Option<AppName> = app.as_deref().map(name).transpose()?;
    api.handle.ask(move |steward| steward.world.show_replicas(app.as_ref())).await.map(Json)
}
