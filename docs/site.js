// What the theme leaves out for those who read with a keyboard or a screen reader.
document.querySelector(".md-search")?.setAttribute("aria-label", "Search");

for (const drawing of document.querySelectorAll("p > img[src$='.svg']:only-child")) drawing.parentElement.tabIndex = 0;

// The theme puts each table into a box, some time after the page is there. A wide one has to be scrolled.
const label = () => {
  for (const box of document.querySelectorAll(".md-typeset__scrollwrap:not([tabindex])")) box.tabIndex = 0;
};
label();
new MutationObserver(label).observe(document.querySelector("article"), { childList: true, subtree: true });
