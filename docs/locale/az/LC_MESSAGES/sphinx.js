Documentation.addTranslations({
    "locale": "az",
    "messages": {
        ", in ": ", burada: ",
        "Hide Search Matches": "Tapılan sözlərin işarələnməsini söndür",
        "Preparing search...": "Axtarış hazırlanır...",
        "Search Results": "Axtarışın nəticələri",
        "Searching": "Axtarılır",
        "Search": "Axtarış",
        "Search finished, found one page matching the search query.": [
            "Axtarış bitdi: sorğuya uyğun bir səhifə tapıldı.",
            "Axtarış bitdi: sorğuya uyğun ${resultCount} səhifə tapıldı."
        ],
        "Your search did not match any documents. Please make sure that all words are spelled correctly and that you've selected enough categories.": "Heç nə tapılmadı. Sözlərin düzgün yazıldığını yoxlayın."
    },
    "plural_expr": "(n != 1)"
});
