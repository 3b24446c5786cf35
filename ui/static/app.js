// What htmx can't do: clocks that tick, the line that says whether the page is live, logs, and chat.
"use strict";

const $ = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => root.querySelectorAll(selector);
const skew = Date.now() / 1000 - Number(document.body.dataset.now);
const now = () => Date.now() / 1000 - skew;

for (const e of all("[data-scriptless]")) e.hidden = true;

// --- clocks ---

function words(seconds) {
  if (seconds < 0.95) return seconds >= 0.05 ? `${seconds.toFixed(1)} s` : "0 s";
  const s = Math.round(seconds), two = (n) => String(n).padStart(2, "0");
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${two(s % 60)} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${two(Math.floor((s % 3600) / 60))} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

function tick() {
  const at = now();
  for (const e of all("time[data-since]")) e.textContent = words(Math.max(Math.round(at - e.dataset.since), 0));
  for (const e of all("time[data-until]")) e.textContent = words(Math.max(Math.round(e.dataset.until - at), 0));
  for (const e of all("progress[data-to]")) {
    const { from, to } = e.dataset;
    e.value = Math.max(0, Math.min((100 * (at - from)) / Math.max(to - from, 0.1), 99));
  }
}
setInterval(tick, 500);

$("nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });

// --- the live line ---

function say(state, text) {
  const line = $("#line");
  if (!line || line.dataset.state === state) return;
  line.dataset.state = state;
  $(".text", line).textContent = text;
}
const on = (name, act) => document.body.addEventListener(name, act);
on("htmx:sseOpen", () => say("live", "live"));
on("htmx:sseError", () => say("lost", "connection lost, reconnecting …"));
on("htmx:sseBeforeMessage", tick);
on("htmx:oobAfterSwap", tick);

// Who is signed out is led to the form by the page itself, and back.
const askAnew = () => location.reload();
const SIGNED_OUT = 401;

// Events of ours that are no content: htmx hands over its source once it is open.
on("htmx:sseOpen", ({ detail }) => {
  detail.source.addEventListener("stale", askAnew);
  detail.source.addEventListener("ended", askAnew);
});

function toast(text) {
  const note = document.createElement("p");
  note.textContent = text;
  $("#toasts").append(note);
  setTimeout(() => note.remove(), 8000);
}
on("htmx:responseError", ({ detail: { xhr } }) => {
  if (xhr.status === SIGNED_OUT) askAnew();
  else toast(reason(xhr.responseText, xhr.status));
});
on("htmx:sendError", () => toast("the service does not answer"));
on("htmx:configRequest", ({ detail }) => {
  detail.headers.Accept = detail.verb === "get" ? "text/html" : "application/json";
});

function reason(text, status) {
  if (status === SIGNED_OUT) return "You are signed out.";
  try { return JSON.parse(text).error.message; } catch { return `it answered ${status}`; }
}
async function refusal(response) {
  return new Error(reason(await response.text(), response.status), { cause: response.status });
}

for (const select of all("select[data-submits]")) select.addEventListener("change", () => select.form.submit());

// --- logs ---

const LINES_MAX = 5000, RETRY_MS = 2000;

function log(root) {
  const shown = $("[data-lines]", root), filter = $("[data-filter]", root), pause = $("[data-pause]", root);
  const line = $("[data-line]", root), count = $("[data-count] span", root);
  let lines = [], rest = "", paused = false, unseen = 0, due = false;

  function status(state, words) {
    line.dataset.state = state;
    $(".text", line).textContent = words;
  }
  function draw() {
    due = false;
    if (paused) {
      count.textContent = `${unseen} new`;
      return;
    }
    const wanted = filter.value.toLowerCase();
    const kept = wanted ? lines.filter((one) => one.toLowerCase().includes(wanted)) : lines;
    const follows = shown.scrollHeight - shown.scrollTop - shown.clientHeight < 40;
    shown.textContent = kept.join("\n");
    if (follows) shown.scrollTop = shown.scrollHeight;
    count.textContent = wanted ? `${kept.length} of ${lines.length}` : `${lines.length}`;
    unseen = 0;
  }
  function soon() {
    if (!due) requestAnimationFrame(draw);
    due = true;
  }
  function take(text) {
    const fresh = (rest + text).split("\n");
    rest = fresh.pop();
    unseen += fresh.length;
    lines = lines.concat(fresh).slice(-LINES_MAX);
    soon();
  }
  async function follow() {
    const response = await fetch(`${root.dataset.log}?follow=1&tail_bytes=262144`);
    if (!response.ok) throw await refusal(response);
    [lines, rest] = [[], ""];
    status("live", "live");
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) take(part.value);
    if (rest) take("\n");
    status("static", "the engine has ended");
  }
  async function keep() {
    for (;;) {
      try {
        return await follow();
      } catch (error) {
        if (error.cause === SIGNED_OUT) return askAnew();
        status("lost", "connection lost, reconnecting …");
        await new Promise((done) => setTimeout(done, RETRY_MS));
      }
    }
  }
  $("[data-bar]", root).hidden = false;
  shown.scrollTop = shown.scrollHeight;
  filter.addEventListener("input", soon);
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    pause.textContent = paused ? "Resume" : "Pause";
    soon();
  });
  keep();
}
for (const root of all("[data-log]")) log(root);

// --- chat ---

async function* events(response) {
  // Server-sent events, comments too: [field, value].
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const at = line.indexOf(":");
      if (at >= 0) yield [line.slice(0, at), line.slice(at + 1).trim()];
    }
  }
}

function chat(root) {
  const talk = $("[data-talk]", root), waiting = $("[data-waiting]", root), form = $("[data-prompt]", root);
  const text = $("textarea", form), send = $("[data-send]", form), cancel = $("[data-cancel]", form);
  let messages = [], running = null, since = 0;
  form.hidden = false;

  function turn(role) {
    const item = document.createElement("li"), who = document.createElement("span"), said = document.createElement("p");
    item.dataset.role = role;
    who.textContent = role === "user" ? "You" : root.dataset.model;
    item.append(who, said);
    talk.append(item);
    item.scrollIntoView({ block: "nearest" });
    return item;
  }
  function busy(controller) {
    running = controller;
    send.disabled = running !== null;
    cancel.hidden = running === null;
  }
  function wait(text) {
    waiting.hidden = !text;
    $("span", waiting).textContent = text;
    waited();
  }
  function waited() {
    if (!waiting.hidden) $("time", waiting).textContent = `waited ${words(Math.round((performance.now() - since) / 1000))}`;
  }
  setInterval(waited, 500);
  function meta(item, words, failed = false) {
    const line = document.createElement("small");
    line.textContent = words;
    if (failed) item.dataset.failed = "";
    item.append(line);
    return line;
  }
  function fail(item, error) {
    const line = meta(item, error.message, true);
    if (error.cause !== SIGNED_OUT) return;
    const link = document.createElement("a");
    link.href = `/dashboard/sign-in?next=${encodeURIComponent(location.pathname + location.search)}`;
    link.textContent = "Sign in";
    line.append(" ", link);
  }

  async function answer(item) {
    const began = (since = performance.now());
    const headers = { "content-type": "application/json", prefer: `wait=${root.dataset.hold}, progress` };
    const body = JSON.stringify({ model: root.dataset.model, messages, stream: true, stream_options: { include_usage: true } });
    const response = await fetch("/v1/chat/completions", { method: "POST", headers, body, signal: running.signal });
    if (!response.ok) throw await refusal(response);
    const said = $("p", item);
    let first = 0, usage = null;
    for await (const [field, value] of events(response)) {
      if (field === "") wait(value);
      if (field !== "data" || value === "[DONE]") continue;
      const chunk = JSON.parse(value);
      if (chunk.error) throw new Error(chunk.error.message);
      const delta = chunk.choices?.[0]?.delta?.content;
      usage = chunk.usage ?? usage;
      if (!delta) continue;
      first ||= performance.now();
      wait("");
      said.textContent += delta;
      item.scrollIntoView({ block: "nearest" });
    }
    const seconds = (ms) => words(ms / 1000), parts = [];
    if (first) parts.push(`first words after ${seconds(first - began)}`);
    parts.push(`${seconds(performance.now() - began)} in all`);
    if (usage) parts.push(`${usage.prompt_tokens} + ${usage.completion_tokens} tokens`);
    meta(item, parts.join(" · "));
    return said.textContent;
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const asked = text.value.trim();
    if (!asked || running || !root.dataset.model) return;
    text.value = "";
    messages.push({ role: "user", content: asked });
    $("p", turn("user")).textContent = asked;
    const item = turn("assistant");
    busy(new AbortController());
    try {
      messages.push({ role: "assistant", content: await answer(item) });
    } catch (error) {
      if (error.name === "AbortError") meta(item, "stopped");
      else fail(item, error);
      messages.pop();
    } finally {
      wait("");
      busy(null);
      text.focus();
    }
  });
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  cancel.addEventListener("click", () => running?.abort());
  $("[data-clear]", form).addEventListener("click", () => {
    running?.abort();
    messages = [];
    talk.replaceChildren();
    text.focus();
  });
}
for (const root of all("[data-chat]")) chat(root);
