// What htmx does not do by itself: say that a connection is lost, that a key is no longer good and that a click
// went nowhere, keep the focus near what went away, and close a notice.
"use strict";

const lost = document.getElementById("lost");
const main = document.getElementById("main");
const silent = new Set();

function tellWhetherLost() {
  lost.hidden = ![...silent].some((place) => place.isConnected);
}

async function askForTheKey() {
  try {
    const reply = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (reply.status === 401 || reply.status === 403) location.reload();
  } catch {
    // Nobody is there; the stream tries again.
  }
}

document.addEventListener("htmx:sseError", (event) => {
  silent.add(event.target);
  tellWhetherLost();
  // A stream that was refused, not cut: by the gateway, or by what stands before it.
  if (event.detail.source.readyState === EventSource.CLOSED) askForTheKey();
});
for (const name of ["htmx:sseOpen", "htmx:sseClose"]) {
  document.addEventListener(name, (event) => {
    silent.delete(event.target);
    tellWhetherLost();
  });
}

document.addEventListener("htmx:sendError", () => {
  const words = document.createElement("p");
  words.className = "banner bad";
  words.textContent = "The gateway did not answer: what you asked for may not have been done.";
  document.getElementById("notice")?.replaceChildren(words);
});

// A button may go with its row, while somebody without a mouse is on it.
document.addEventListener("htmx:sseBeforeMessage", (event) => {
  if (!event.target.contains(document.activeElement)) return;
  const place = event.target.closest("section, main");
  setTimeout(() => {
    if (document.activeElement !== document.body) return;
    (place.querySelector("[tabindex='-1']") ?? main).focus();
  });
});

document.addEventListener("click", (event) => {
  if (!event.target.matches("[data-close]")) return;
  event.target.parentElement.remove();
  main.focus({ preventScroll: true });
});
