// Servers on this page are on their way: look again in a moment, unless somebody is typing or the tab is hidden.
const delay = Number(document.querySelector("[data-refresh]")?.dataset.refresh ?? 2) * 1000;
const look = () => {
  const typing = document.activeElement?.matches("input, select, textarea");
  if (document.hidden || typing) setTimeout(look, delay);
  else location.reload();
};
setTimeout(look, delay);
