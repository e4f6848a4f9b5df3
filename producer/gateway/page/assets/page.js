// What htmx does not do by itself: say that the connection is lost.
"use strict";

const lost = document.getElementById("lost");

document.addEventListener("htmx:sseError", (event) => {
  if (event.target.id === "live") lost.hidden = false;
});
document.addEventListener("htmx:sseOpen", (event) => {
  if (event.target.id === "live") lost.hidden = true;
});
