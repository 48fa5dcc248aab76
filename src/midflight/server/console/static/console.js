// What the pages do beyond what forms and links do by themselves. Without it everything works but for live progress.
"use strict";

(() => {
  // The viewer's time zone: told to the server once, so that it writes times in it; until then they are rewritten here.
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";
  const known = document.cookie.split("; ").find((each) => each.startsWith("mf_zone="));
  const rewrite = !known || decodeURIComponent(known.slice(8)) !== zone;
  if (rewrite) {
    const secure = location.protocol === "https:" ? "; Secure" : "";
    document.cookie = `mf_zone=${encodeURIComponent(zone)}; Path=/; Max-Age=31536000; SameSite=Lax${secure}`;
    for (const element of document.querySelectorAll('time[data-time="at"]')) {
      const at = new Date(element.dateTime);
      const two = (value) => String(value).padStart(2, "0");
      const seconds = element.textContent.trim().length > 16 ? `:${two(at.getSeconds())}` : "";
      element.textContent =
        `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${two(at.getHours())}:${two(at.getMinutes())}${seconds}`;
    }
  }

  const menu = document.querySelector(".menu");
  const nav = document.getElementById("nav");
  if (menu && nav) {
    menu.addEventListener("click", () => {
      const shown = nav.classList.toggle("shown");
      menu.setAttribute("aria-expanded", String(shown));
      if (shown) nav.querySelector("a")?.focus();
    });
  }

  document.querySelector("[data-focus]")?.focus();

  // A form is sent once, however often its button is pressed; and again when one comes back to the page.
  document.addEventListener("submit", (event) => {
    if (event.target.method !== "post") return;
    if (event.target.dataset.sent) event.preventDefault();
    event.target.dataset.sent = "yes";
  });
  window.addEventListener("pageshow", () => {
    for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
  });

  document.addEventListener("change", (event) => {
    if (event.target.matches("[data-submit]")) event.target.form.requestSubmit();
  });

  document.addEventListener("click", async (event) => {
    const copy = event.target.closest("[data-copy]");
    if (copy) {
      await navigator.clipboard.writeText(document.getElementById(copy.dataset.copy).textContent);
      copy.textContent = "Copied";
    }
    const add = event.target.closest("[data-add]");
    if (add) addRow(add.dataset.add);
    const remove = event.target.closest("[data-remove]");
    if (remove) {
      const row = remove.closest(".repeat");
      const list = row.parentElement;
      row.remove();
      number(list);
      list.closest("fieldset")?.querySelector("[data-add]")?.focus();
    }
    if (event.target.closest("[data-print]")) window.print();
  });
  for (const button of document.querySelectorAll("[data-copy]")) button.hidden = !navigator.clipboard;
  for (const button of document.querySelectorAll("[data-add], [data-remove], [data-print]")) button.hidden = false;

  // Lists of a form (rings, windows, rules): a row is cloned from the template beside it.
  function addRow(name) {
    const list = document.getElementById(name);
    const row = document.getElementById(`${name}-template`).content.firstElementChild.cloneNode(true);
    list.append(row);
    for (const button of row.querySelectorAll("[data-remove]")) button.hidden = false;
    number(list);
    row.querySelector("input, select")?.focus();
  }

  function number(list) {
    [...list.children].forEach((row, index) => {
      for (const element of row.querySelectorAll("[name], [id], [for]")) {
        for (const attribute of ["name", "id", "for"]) {
          const value = element.getAttribute(attribute);
          if (value) element.setAttribute(attribute, value.replace(/-(\d+|N)-/, `-${index}-`));
        }
      }
      const title = row.querySelector("[data-number]");
      if (title) title.textContent = String(index + 1);
    });
  }

  // A menu of one button that asks first closes when one leaves it.
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const open of document.querySelectorAll("details.confirm[open]")) {
      open.open = false;
      open.querySelector("summary").focus();
    }
  });
  document.addEventListener("click", (event) => {
    for (const open of document.querySelectorAll("details.confirm[open]")) {
      if (!open.contains(event.target)) open.open = false;
    }
  });

  // What somebody has opened or is typing into stays as it is while live parts are renewed.
  document.addEventListener("htmx:beforeSwap", (event) => {
    const target = event.detail.target;
    if (target.matches("[data-live]") && target.querySelector("details.confirm[open]")) event.detail.shouldSwap = false;
  });

  // Keys: "/" to the search field, "g" then a letter to a page.
  const pages = { o: "/", d: "/devices", c: "/catalogue", r: "/deployments", p: "/policies", m: "/compliance" };
  let going = false;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
    if (event.key === "/") {
      const search = document.querySelector('input[type="search"]');
      if (search) { search.focus(); event.preventDefault(); }
    } else if (going && pages[event.key]) {
      location.assign(pages[event.key]);
    }
    going = event.key === "g";
  });
})();
