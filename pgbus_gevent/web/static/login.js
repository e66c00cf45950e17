// The form of the console: says when the token was wrong.
if (location.search === "?wrong") {
  document.getElementById("wrong").hidden = false;
  history.replaceState(null, "", location.pathname);
}
