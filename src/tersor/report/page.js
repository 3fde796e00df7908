for (const table of document.querySelectorAll("[data-filter]")) {
  const words = document.getElementById(table.dataset.filter);
  const only = document.getElementById(table.dataset.filter + "-only");
  const rows = [...table.tBodies[0].rows];
  const refresh = () => {
    const wanted = words.value.trim().toLowerCase();
    for (const row of rows)
      row.hidden = !row.textContent.toLowerCase().includes(wanted) || (only?.checked && !row.classList.contains("fell"));
  };
  words.closest("form").hidden = false;
  words.addEventListener("input", refresh);
  only?.addEventListener("change", refresh);
}
