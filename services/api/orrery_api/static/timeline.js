// The live end of a start's timeline. The page already shows what happened so far; the stream adds what comes.
const start = document.querySelector("#start");
const by = (id) => document.getElementById(id);
const shown = new Set([...document.querySelectorAll("#timeline li")].map((li) => li.dataset.position));

function add(step) {
  if (shown.has(String(step.position))) return;
  shown.add(String(step.position));
  const li = document.createElement("li");
  li.className = step.failed ? "failed" : step.ready ? "ready" : "";
  const text = document.createElement("span");
  text.textContent = step.message;
  const time = document.createElement("time");
  time.dateTime = step.time;
  time.textContent = step.time.slice(11, 19);
  li.append(text, time);
  by("timeline").append(li);
}

function fail(step) {
  by("words").textContent = step.step === "cancelled" ? "Start cancelled" : "Start failed";
  by("words").className = step.step === "cancelled" ? "state stopped" : "state failed";
  const box = document.createElement("div");
  box.className = "alert";
  box.textContent = step.message;
  by("problem").replaceChildren(box);
  if (step.log_tail?.length) {
    by("log").hidden = false;
    by("log").querySelector("pre").textContent = step.log_tail.join("\n");
  }
  by("again").hidden = false;
  by("cancel").hidden = true;
}

const source = new EventSource(start.dataset.progressUrl);
source.onmessage = ({ data }) => {
  const step = JSON.parse(data);
  add(step);
  if (!step.failed) by("progress").value = Math.max(by("progress").value, step.progress);
  if (step.ready) {
    source.close();
    by("words").textContent = "Ready";
    location.replace(location.href); // the page itself knows where Open leads
  } else if (step.failed) {
    source.close();
    fail(step);
  } else if (step.step === "claimed") {
    by("words").textContent = "Starting";
  }
};
