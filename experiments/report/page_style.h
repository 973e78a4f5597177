// The style and the script that every report carries inside.
#pragma once

namespace kvmix {

inline constexpr char kPageStyle[] = R"(
:root{--ink:#1d2430;--soft:#5b6472;--paper:#ffffff;--panel:#f5f6f8;--line:#dfe3e8;--link:#0b62b8;--heat:#2171b5;color-scheme:light}
@media (prefers-color-scheme:dark){:root{--ink:#e4e7ec;--soft:#9aa4b2;--paper:#14171c;--panel:#1d2128;--line:#343a44;--link:#7db7f5;--heat:#4292c6;color-scheme:dark}}
:root[data-theme=light]{--ink:#1d2430;--soft:#5b6472;--paper:#ffffff;--panel:#f5f6f8;--line:#dfe3e8;--link:#0b62b8;--heat:#2171b5;color-scheme:light}
:root[data-theme=dark]{--ink:#e4e7ec;--soft:#9aa4b2;--paper:#14171c;--panel:#1d2128;--line:#343a44;--link:#7db7f5;--heat:#4292c6;color-scheme:dark}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1280px;margin:0 auto;padding:16px 20px 60px}
h1{font-size:26px}h2{margin-top:40px;border-bottom:1px solid var(--line)}h3{font-size:16px;margin:0 0 8px}
a{color:var(--link)}code{font-size:13px;background:var(--panel);padding:1px 4px;border-radius:3px;overflow-wrap:anywhere}
.made,.note,figcaption{color:var(--soft);font-size:13.5px}.bad{color:#d33}
button{font:inherit;color:inherit;background:var(--panel);border:1px solid var(--line);border-radius:4px;cursor:pointer}
.scroll{overflow:auto;max-height:520px;border:1px solid var(--line);border-radius:6px}
table{border-collapse:collapse;font-size:13px;width:100%}
th,td{padding:4px 9px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}td:first-child,td:nth-child(2){white-space:normal;overflow-wrap:anywhere;min-width:11em}
th:first-child,td:first-child{text-align:left}
th{position:sticky;top:0;background:var(--panel);cursor:pointer}
th[aria-sort=ascending]::after{content:" \25B2"}th[aria-sort=descending]::after{content:" \25BC"}
figure{margin:22px 0;padding:14px;background:var(--panel);border:1px solid var(--line);border-radius:8px;break-inside:avoid}
svg.plot{width:100%;height:auto;font:12px system-ui,sans-serif}
.t{fill:var(--ink)}.g{stroke:var(--line)}.a{stroke:var(--soft)}.cell{fill:var(--heat);stroke:var(--panel)}
.dot{stroke:var(--panel);stroke-width:1.2}
nav ol{columns:2;font-size:13.5px}
@media print{button{display:none}.scroll{max-height:none;overflow:visible;border:0}table{font-size:8px}th,td{padding:2px 4px;white-space:normal}main{max-width:none}}
)";

inline constexpr char kPageScript[] = R"(
document.getElementById('theme').onclick=()=>{const r=document.documentElement,
 dark=r.dataset.theme?r.dataset.theme==='dark':matchMedia('(prefers-color-scheme: dark)').matches;
 r.dataset.theme=dark?'light':'dark'};
const key=t=>{const m=t.match(/[-+]?\d+(\.\d+)?(e[-+]?\d+)?(?![\da-wyz])/i);return m&&m.index<12?+m[0]:NaN};
document.querySelectorAll('th').forEach(th=>{const sort=()=>{
 const t=th.closest('table'),b=t.tBodies[0],i=th.cellIndex,up=th.getAttribute('aria-sort')!=='ascending';
 t.querySelectorAll('th').forEach(o=>o.removeAttribute('aria-sort'));
 th.setAttribute('aria-sort',up?'ascending':'descending');
 [...b.rows].sort((x,y)=>{const p=x.cells[i].textContent,q=y.cells[i].textContent,
  a=key(p),c=key(q),d=i>0&&!isNaN(a)&&!isNaN(c)?a-c:p.localeCompare(q);return up?d:-d}).forEach(r=>b.append(r))};
 th.onclick=sort;th.onkeydown=e=>{if(e.key==='Enter')sort()}});
)";

}  // namespace kvmix
