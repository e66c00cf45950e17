// The login form of the console: shows that the token was wrong.
if (location.search === "?wrong") {
  document.getElementById("wrong").hidden = false;
  history.replaceState(null, "", location.pathname);
}
